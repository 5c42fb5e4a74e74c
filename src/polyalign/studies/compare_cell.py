"""One cell of a comparison: train a row at one seed, measure it, and return small plain data.

A cell holds figures item by item (so that rows can be compared pair by pair), never what trained
or tested it; texts only where they were asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import resource
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import polyalign
from polyalign.errors import DataError
from polyalign.evaluation.generation import Samples, draw, judged
from polyalign.evaluation.generation import contest as play
from polyalign.evaluation.likelihood import divergence, perplexity
from polyalign.evaluation.ranking import ranking
from polyalign.feedback.payloads import canonical, text_of
from polyalign.feedback.records import Pair, Prompt, Record
from polyalign.feedback.splitting import split
from polyalign.feedback.statistics import answers_of
from polyalign.methods import get
from polyalign.policies.asked import Asked, asked
from polyalign.policies.counted import Counted, CountedJudge, Tokens
from polyalign.protocols import Policy, Sampling
from polyalign.studies.compare_bench import Bench, held
from polyalign.studies.compare_part import Part
from polyalign.studies.compare_setup import Job
from polyalign.studies.compare_train import candidates, train

SHOWN = 6
"""Prompts whose answers are kept to be read."""
LONGEST = 800
"""Characters of a text that is kept."""
POINTS = 60
"""Points of a learning curve that are kept."""
CURVES = ("loss", "rewards/accuracies", "rewards/margins", "reward", "kl", "grad_norm")
ASIDE = 0.2
"""Share of the training prompts on which a search chooses."""


def run_cell(job: Job, bench: Bench, part: Part | None = None) -> dict[str, Any]:
    """Compute a cell; the same job gives the same figures but for seconds and memory.

    ``part``: what an interrupted process kept of it.
    """
    part = part or Part(None)
    began = time.perf_counter()
    reset_peak()
    setup, row = job.setup, job.row
    out: dict[str, Any] = {"row": row.label, "kind": row.kind, "method": row.method,
                           "hyper": dict(row.hyper), "seed": job.seed}  # fmt: skip
    policy: Policy
    if row.kind == "base":
        policy = bench.base()
        out["cost"] = Tokens().to_json() | {"steps": 0}
        train_seconds = 0.0
    else:
        shuffle = 1 + job.seed if row.kind == "shuffled" else None
        extra, search, used = _searched(job, bench, shuffle, part)
        budget = setup.budget - used
        done = train(
            bench,
            row,
            job.seed,
            budget,
            records=bench.records_for(row, shuffle),
            extra=extra,
            known=bench.known if row.method else None,
            shuffle=shuffle,
            part=part,
        )
        train_seconds = done.before + time.perf_counter() - began
        policy = asked(bench.trained, done.condition)
        cost = done.spent.to_json() | {"steps": done.steps, "planned": done.planned}
        cost["search"] = used
        cost["total"] += used
        out["cost"] = cost
        out["settings"] = {
            "lr": done.settings.lr, "batch": done.settings.batch,
            "epochs": round(done.settings.epochs, 3), **extra,
        }  # fmt: skip
        out["search"] = search
        out["curve"] = curve(done.rows)
    out["memory_bytes"] = peak()
    started = time.perf_counter()
    out |= measure(bench, policy, base=row.kind == "base")
    out["seconds"] = {
        "train": round(train_seconds, 2),
        "measure": round(time.perf_counter() - started, 2),
    }
    out["made"] = {
        "polyalign": polyalign.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(getattr(policy, "device", "cpu")),
        "threads": torch.get_num_threads(),
    }
    return rounded(out)


def _searched(
    job: Job, bench: Bench, shuffle: int | None, part: Part
) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """The best options of the declared search, each trial, and the tokens that they took.

    Half of the budget is shared by the trials; each is trained with three quarters of its part on
    four fifths of the training prompts, and judged on as much of the fifth as the rest pays for.
    """
    setup, row = job.setup, job.row
    grid = candidates(setup.search, get(row.method))
    if len(grid) < 2:
        return (grid[0] if grid else {}), [], 0
    # Another seed than the one that parted training from held-out prompts.
    some, rest = split(bench.records, ASIDE, seed=1)
    some_part = bench.records_for(row, shuffle, some)
    share = setup.budget // (2 * len(grid))
    bench.policy(row, job.seed)
    aside = affordable(bench, rest, share // 4)

    def trial(number: int, extra: dict[str, Any]) -> dict[str, Any]:
        spent = Tokens()
        done = train(
            bench, row, job.seed, share * 3 // 4, records=some_part, extra=extra,
            known=bench.known, shuffle=shuffle, part=part, name=f"trial-{number}",
        )  # fmt: skip
        value = _aside(bench, asked(bench.trained, done.condition), aside, spent)
        return {"options": extra, "value": value, "tokens": done.spent.total + spent.total}

    trials = [
        part.once(f"tried-{number}", partial(trial, number, extra))
        for number, extra in enumerate(grid)
    ]
    used = sum(trial["tokens"] for trial in trials)
    best = max(trials, key=lambda trial: trial["value"])
    return dict(best["options"]), trials, used


def affordable(bench: Bench, records: Sequence[Record], tokens: int) -> list[Record]:
    """The first records that can be measured, by policy and reference, for so many tokens."""
    out: list[Record] = []
    for record in records:
        prompt = getattr(record, "prompt", "")
        context = bench.trained.encode(prompt, None).cost
        answers = [len(bench.trained.encode(prompt, a).steps) for a in answers_of(record)]
        tokens -= (
            2 * (len(answers) * context + sum(answers))
            if answers
            else (context + bench.setup.max_new_tokens)
        )
        if out and tokens < 0:
            break
        out.append(record)
    return out


def _aside(bench: Bench, trained: Policy, records: Sequence[Record], spent: Tokens) -> float:
    """What a trial is chosen by: ranking of pairs put aside, else the judge's mean score."""
    policy = Counted(trained, spent)
    pairs = held(records, Pair)
    if pairs:
        alike = asked(bench.base(), trained.condition if isinstance(trained, Asked) else None)
        reference = Counted(alike, spent, "reference")
        return float(ranking(policy, reference, pairs).wins("implicit").mean())
    if bench.judge is None or bench.pairwise:
        raise DataError(
            "A search needs pairs to put aside, or a judge that scores.",
            "Leave --search out, or give --judge.",
        )
    prompts = [Prompt(key=r.key, prompt=r.prompt, meta=r.meta) for r in _prompted(records)]
    samples = draw(policy, prompts, 1, bench.how)
    scores = judged(samples, CountedJudge(bench.judge, spent)).scores
    return float(np.nanmean(scores))


def _prompted(records: Sequence[Any]) -> list[Any]:
    return [record for record in records if hasattr(record, "prompt")]


def measure(bench: Bench, policy: Policy, *, base: bool = False) -> dict[str, Any]:
    """All that the held-out data tell of a policy, item by item."""
    out: dict[str, Any] = {}
    if bench.pairs:
        found = ranking(policy, None, bench.pairs, progress=bench.progress)
        out["pairs"] = {
            "keys": [_hashed(key) for key in found.keys],
            "cluster": [_hashed(c) for c in found.cluster],
            "chosen": found.chosen.tolist(),
            "rejected": found.rejected.tolist(),
            "chosen_steps": found.chosen_steps.tolist(),
            "rejected_steps": found.rejected_steps.tolist(),
        }
    if bench.demonstrations:
        ppl = perplexity(policy, bench.demonstrations, progress=bench.progress)
        out["perplexity"] = {
            "nll": ppl.nll.tolist(),
            "steps": ppl.steps.tolist(),
            "cluster": [_hashed(c) for c in ppl.cluster],
        }
    if bench.prompts:
        out["answers"] = _answers(bench, policy, base)
        if bench.setup.texts:
            out["texts"] = _texts(bench, policy)
    return out


def _answers(bench: Bench, policy: Policy, base: bool) -> dict[str, Any]:
    setup = bench.setup
    samples = (
        bench.base_samples
        if base
        else draw(policy, bench.prompts, setup.answers, bench.how, progress=bench.progress)
    )
    out: dict[str, Any] = {
        "n": samples.n,
        "cluster": [_hashed(canonical(p.prompt)) for p in samples.prompts],
        "steps": samples.steps.tolist(),
        **{k: v for k, v in samples.to_json().items() if k in ("samples", "distinct_2", "faults")},
    }
    if bench.judge is not None:
        if not bench.pairwise:
            out["scores"] = judged(samples, bench.judge).scores.tolist()
        elif not base:
            first = _first(bench.base_samples, samples.n)
            found = play(samples, first, bench.judge)
            out["wins"] = found.wins.tolist()
            disagreement = getattr(bench.judge, "disagreement", None)
            if disagreement is not None:
                out["disagreement"] = disagreement
    if base:
        out["kl"] = [0.0] * len(samples.prompts)
        return out
    own = samples
    if bench.how.temperature != 1.0:
        law = Sampling(max_steps=setup.max_new_tokens)
        own = draw(policy, bench.prompts, 1, law, progress=bench.progress, what="sampling (kl)")
    kl = divergence(policy, bench.base(), own, progress=bench.progress)
    out["kl"] = kl.k1.reshape(len(own.prompts), -1).mean(1).tolist()
    return out


def _first(samples: Samples, n: int) -> Samples:
    """The first ``n`` of each prompt's answers."""
    keep = [i for i in range(len(samples.rows)) if i % samples.n < n]
    return Samples(
        samples.prompts,
        min(n, samples.n),
        samples.how,
        tuple(samples.rows[i] for i in keep),
        tuple(samples.payloads[i] for i in keep),
        tuple(samples.finished[i] for i in keep),
    )


def _texts(bench: Bench, policy: Policy) -> list[dict[str, str]]:
    """The most likely answers to a few prompts."""
    part = bench.prompts[:SHOWN]
    greedy = Sampling(temperature=0.0, max_steps=bench.setup.max_new_tokens)
    drawn = draw(policy, part, 1, greedy)
    return [
        {"prompt": text_of(p.prompt)[-LONGEST:], "answer": text_of(a).strip()[:LONGEST]}
        for p, a in zip(part, drawn.payloads, strict=True)
    ]


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def curve(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Metrics by computed tokens, at most so many points each: means of neighbours."""
    out: dict[str, list[list[float]]] = {}
    for name in CURVES:
        points = [
            (float(r["computed"]), float(r[name]))
            for r in rows
            if isinstance(r.get(name), (int, float)) and np.isfinite(r[name])
        ]
        if points:
            parts = np.array_split(np.array(points), min(POINTS, len(points)))
            out[name] = [part.mean(0).tolist() for part in parts]
    return out


def rounded(value: Any, digits: int = 7) -> Any:
    """Plain data with floats of so many significant digits; what is not finite becomes None."""
    match value:
        case dict():
            return {str(k): rounded(v, digits) for k, v in value.items()}
        case list() | tuple():
            return [rounded(v, digits) for v in value]
        case bool() | int() | str() | None:
            return value
        case float():
            return float(f"{value:.{digits}g}") if np.isfinite(value) else None
    return str(value)


def reset_peak() -> None:
    """Forget the highest memory so far, where the system allows it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Bytes of memory at the highest point since :func:`reset_peak`: the device's where there is
    one, else the process's.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
