"""Comparisons in the exact worlds: the same cells and the same report, without sampling noise.

Feedback is drawn from the world with the run's seed; a policy is measured by its exact expected
gold reward and its exact divergence from the start, prompt by prompt.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import polyalign
from polyalign.errors import DataError, OptionError, nearest
from polyalign.feedback import AUTOMATIC, convert
from polyalign.feedback.records import Prompt, Record, kind_name
from polyalign.loops.session import Settings
from polyalign.methods import get
from polyalign.policies.counted import Tokens
from polyalign.protocols import Judge
from polyalign.studies.compare_bench import ShuffledJudge, shuffled
from polyalign.studies.compare_cell import curve, peak, reset_peak, rounded
from polyalign.studies.compare_part import Part
from polyalign.studies.compare_setup import Job, Row, Setup
from polyalign.studies.compare_train import at_budget, candidates
from polyalign.studies.lab import policy_for
from polyalign.worlds.bandit import Bandit
from polyalign.worlds.discrete import Discrete, kl_divergence
from polyalign.worlds.sequences import Sequences

BUDGET = 60_000
PER_PROMPT = 24
"""Pairs for each prompt: few enough that their luck matters, as with real data."""

WORLDS: dict[str, Callable[[], Discrete]] = {
    "bandit": lambda: Bandit.make(40, 8),
    "noisy-bandit": lambda: Bandit.make(40, 8, noise=0.25),
    "intransitive-bandit": lambda: Bandit.make(40, 8, preferences="intransitive"),
    "sequences": lambda: Sequences.make(24, 3, 3, eos=0),
}
"""Worlds by name: a bandit, one with a quarter of labels flipped, one that no reward explains,
and short sequences of several lengths.
"""

TRAIN: dict[str, Any] = {"batch": 240, "lr": 0.1, "clip": None, "schedule": "linear"}
"""Settings of every run in a world, unless options say otherwise."""


def declare_world(setup: Setup) -> Setup:
    """The setup of a comparison in a world; checks names, options and kinds of feedback."""
    if setup.world not in WORLDS:
        raise OptionError(f"There is no world '{setup.world}'.", nearest(setup.world, WORLDS))
    for name in ("model", "data", "eval_data", "judge"):
        if getattr(setup, name):
            raise OptionError(
                f"{name}={getattr(setup, name)!r} has no meaning in a world.", "Leave it out."
            )
    unknown = [name for name in setup.train if name not in Settings.__dataclass_fields__]
    if unknown:
        raise OptionError(
            f"A world's training has no option '{unknown[0]}'.",
            nearest(unknown[0], Settings.__dataclass_fields__),
        )
    if setup.search and len(candidates(setup.search, get(setup.rows[1].method))) > 1:
        raise OptionError(
            "A search needs held-out feedback, which a world's comparison does not keep.",
            "Name the values as methods of their own: METHOD:beta=0.1 METHOD:beta=0.5",
        )
    if setup.primary not in ("", "reward"):
        raise OptionError(f"A world has no measure '{setup.primary}'.", "It has: reward.")
    world = WORLDS[setup.world]()
    for row in setup.rows:
        if row.method:
            records_for(world, row, 0)
    return replace(setup, primary="reward", budget=setup.budget or BUDGET, texts=False)


def records_for(world: Discrete, row: Row, seed: int, shuffle: int | None = None) -> Any:
    """The world's feedback of this seed, in the kind that a row's method reads.

    Everything is made of the same sampled pairs, so that all methods see the same labels.
    """
    declaration = get(row.method)
    wanted = declaration(**row.hyper).feedback or declaration.feedback
    if wanted is Prompt:
        return world.asked()
    records: Sequence[Record] = world.pairs(PER_PROMPT * world.prompts, seed=seed)
    if shuffle is not None:
        records = shuffled(records, shuffle)
    kind = type(records[0])
    if kind is wanted:
        return records
    if (kind, wanted) not in AUTOMATIC:
        raise DataError(
            f"{declaration.id} learns from {kind_name(wanted)}, which cannot be made of a world's "
            "pairs.",
            "Leave it out of this comparison.",
        )
    return list(convert(records, wanted))


def run_world_cell(job: Job, part: Part | None = None) -> dict[str, Any]:
    """One cell in a world: a function of the job but for seconds and memory.

    ``part``: what an interrupted process kept of it.
    """
    began = time.perf_counter()
    reset_peak()
    setup, row = job.setup, job.row
    world = WORLDS[setup.world]()
    policy = policy_for(world)
    out: dict[str, Any] = {"row": row.label, "kind": row.kind, "method": row.method,
                           "hyper": dict(row.hyper), "seed": job.seed}  # fmt: skip
    if row.kind == "base":
        out["cost"] = Tokens().to_json() | {"steps": 0}
        before = 0.0
    else:
        shuffle = 1 + job.seed if row.kind == "shuffled" else None
        judge: Judge = world.judge if shuffle is None else ShuffledJudge(world.judge, shuffle)
        settings = Settings(seed=job.seed, **{**TRAIN, **setup.train})
        done = at_budget(
            get(row.method),
            row.hyper,
            policy,
            records_for(world, row, job.seed, shuffle),
            settings,
            judge,
            setup.budget,
            part=part,
        )
        before = done.before
        out["cost"] = done.spent.to_json() | {"steps": done.steps, "planned": done.planned}
        out["settings"] = {"lr": settings.lr, "batch": settings.batch,
                           "epochs": done.settings.epochs}  # fmt: skip
        out["curve"] = curve(done.rows)
    out["memory_bytes"] = peak()
    law = world.law(policy)
    out["answers"] = {
        "n": 1,
        "cluster": [str(x) for x in range(world.prompts)],
        "reward": (law.exp() * world.reward).sum(-1).tolist(),
        "kl": kl_divergence(law, world.start).clamp(min=0).tolist(),
    }
    if row.kind == "base":
        out["answers"]["best_of"] = best_of(world.start, world.reward, setup.best_of).tolist()
        out["answers"]["n"] = setup.best_of
    out["seconds"] = {"train": round(before + time.perf_counter() - began, 2), "measure": 0.0}
    out["made"] = {
        "polyalign": polyalign.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return rounded(out)


def best_of(log_law: Tensor, reward: Tensor, n: int) -> Tensor:
    """Expected reward [X] of the best of ``n`` draws from log-laws [X, Y], exactly.

    The best of n falls on the k-th smallest reward with probability F_k^n - F_{k-1}^n.
    """
    order = reward.argsort(-1)
    reached = log_law.exp().gather(-1, order).cumsum(-1).clamp(max=1.0) ** n
    mass = reached.diff(dim=-1, prepend=torch.zeros_like(reached[:, :1]))
    return (mass * reward.gather(-1, order)).sum(-1)
