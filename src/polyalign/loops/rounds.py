"""Rounds: sample from the policy, judge, credit, update; then again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from polyalign.engine import processes
from polyalign.errors import DataError, NeedsError, NumericsError
from polyalign.feedback.records import Prompt
from polyalign.feedback.units import order
from polyalign.loops.epochs import finish
from polyalign.loops.length import per_epoch, steps_of
from polyalign.loops.session import Session
from polyalign.protocols import Rollout, Sampling
from polyalign.types import Batch, Rows


def run(session: Session) -> None:
    """Run the current stage: each round takes prompts for one batch of completions.

    A batch of ``settings.batch`` completions is ``batch / n`` prompts with ``n`` completions
    each; the stage's updates pass over it ``epochs`` times. Raises :class:`NeedsError` without a
    judge.
    """
    if session.judge is None:
        raise NeedsError(
            "This method learns from judged samples, and no judge was given.",
            "Add --judge FILE.py:function, or prompts that carry a verifier.",
        )
    prompts = _prompts(session)
    stage, settings, position = session.stage, session.settings, session.position
    options = dict(stage.streams["data"].options)
    n = int(options.pop("n"))
    # A method's budget bounds the user's: both are limits, and the smaller one holds.
    limit = int(options.pop("max_steps", settings.sampling.max_steps))
    how = replace(settings.sampling, **options)
    how = replace(how, max_steps=min(how.max_steps, limit))
    size = max(1, settings.batch // n)
    passes = max(update.epochs for update in stage.updates)
    steps = steps_of(stage, len(prompts), settings)
    batches = per_epoch(stage, len(prompts), settings)
    while position["stage_step"] < steps:
        number = session.loop_state.get("round", 0)
        epoch, place = divmod(number, batches)
        shuffled = order(len(prompts), settings.seed, "order", position["stage"], epoch)
        chosen = [prompts[i] for i in shuffled[place * size : (place + 1) * size]]
        batch, measured = _collect(session, chosen, n, how, number)
        session.loop_state["round"] = number + 1
        for k in range(passes):
            row: dict[str, Any] = measured | session.train(batch, steps)
            last = k == passes - 1 or position["stage_step"] >= steps or _done(session, row)
            finish(
                session,
                row,
                evaluate,
                epoch=(number + 1) / batches,
                steps=steps,
                boundary=last,
            )
            if last:
                break


def _done(session: Session, row: dict[str, Any]) -> bool:
    """Whether an update's ``until`` says that the passes over this rollout are enough."""
    return any(
        update.until is not None and row.get(update.until[0], 0.0) > update.until[1]
        for update in session.stage.updates
    )


def _prompts(session: Session) -> Sequence[Prompt]:
    prompts = [record for record in session.records if isinstance(record, Prompt)]
    if not prompts:
        raise DataError("There is no prompt to answer.", "Give a file with a column 'prompt'.")
    return prompts


def evaluate(session: Session) -> dict[str, float]:
    """The judge's mean score of one sampled answer to each held-out prompt."""
    prompts = [record for record in session.eval_records if isinstance(record, Prompt)]
    own, counts = _share(prompts)
    reward, rows, rollout = _judged(session, own, 1, session.settings.sampling, "eval")
    return _measure(reward, rows, rollout, counts)


def _share(prompts: Sequence[Prompt]) -> tuple[Sequence[Prompt], float]:
    """This process's prompts and 1; where none falls to it, one prompt and 0: it has no weight."""
    own = processes.mine(list(prompts))
    return (own, 1.0) if own else (prompts[:1], 0.0)


def _collect(
    session: Session, prompts: Sequence[Prompt], n: int, how: Sampling, number: int
) -> tuple[Batch, dict[str, float]]:
    """Sample, judge and credit this process's share of one rollout: a batch of units "own", and
    what all processes measured.
    """
    prompts, counts = _share(prompts)
    reward, rows, rollout = _judged(session, prompts, n, how, number)
    repeated = [prompt for prompt in prompts for _ in range(n)]
    fields = _credit(session, reward.reshape(-1, n), rows, rollout)
    weight = torch.tensor([p.weight for p in repeated], dtype=torch.float64)
    weight = counts * weight * fields.pop("keep", torch.ones_like(weight))
    batch = Batch(
        rows,
        {"own": torch.arange(len(repeated))},
        weight,
        fields,
        tuple(f"{p.key}#{i % n}" for i, p in enumerate(repeated)),
        old=rollout.old[:, : rows.mask.shape[1]],
    )
    return batch, _measure(reward, rows, rollout, counts)


def _judged(
    session: Session, prompts: Sequence[Prompt], n: int, how: Sampling, name: object
) -> tuple[Tensor, Rows, Rollout]:
    """``n`` answers to each prompt and the judge's score of each [N]."""
    seeds = [session.seed("sample", name, prompt.key, j) for prompt in prompts for j in range(n)]
    with torch.no_grad():
        rollout = session.policy.sample([p.prompt for p in prompts], n, how, seeds)
    repeated = [prompt for prompt in prompts for _ in range(n)]
    assert session.judge is not None
    verdict = session.judge(
        [p.prompt for p in repeated], list(rollout.payloads), [p.meta for p in repeated]
    )
    if verdict.score is None:
        raise NeedsError("The judge gave no scores.", "Return one number for each completion.")
    reward = verdict.score.double().cpu()
    if reward.shape != (len(repeated),) or not bool(torch.isfinite(reward).all()):
        raise NumericsError(
            f"The judge returned {tuple(reward.shape)} scores for {len(repeated)} completions, or "
            "some "
            "are not finite.",
            "Return one finite number for each completion, in order.",
        )
    return reward, Rows.collate(rollout.rows), rollout


def _credit(session: Session, reward: Tensor, rows: Rows, rollout: Rollout) -> dict[str, Tensor]:
    """Fields of each completion [N, ...] from the rewards [G, K] of the whole rollout."""
    fields: dict[str, Tensor] = {"reward": reward}
    if session.stage.credit is not None:
        lengths = rows.mask.sum(-1).reshape(reward.shape)
        finished = rollout.finished.reshape(reward.shape).cpu()
        fields |= session.stage.credit(reward, lengths=lengths, finished=finished)
    return {name: value.reshape(reward.numel(), *value.shape[2:]) for name, value in fields.items()}


def _measure(reward: Tensor, rows: Rows, rollout: Rollout, counts: float = 1.0) -> dict[str, float]:
    """Means over all processes' rows; this process's count ``counts`` times."""
    lengths = rows.mask.sum(-1).double()
    finished = rollout.finished.double().cpu()
    count = torch.tensor(float(len(reward)), dtype=torch.float64)
    sums = counts * torch.stack([reward.sum(), lengths.sum(), finished.sum(), count])
    sums = processes.total(sums)
    total, length, done, n = sums.tolist()
    mean = total / n
    # Deviations from the mean, not E[x^2] - E[x]^2, which cancels for large rewards.
    spread = float(processes.total(counts * ((reward - mean) ** 2).sum()))
    return {
        "reward": mean,
        "reward_std": (spread / n) ** 0.5,
        "completions/mean_length": length / n,
        "completions/clipped_ratio": 1.0 - done / n,
    }
