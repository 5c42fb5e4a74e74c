"""``evaluate``: everything that the given data and judge can tell about a model, as plain data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from polyalign.engine.storage import write_json_atomic
from polyalign.errors import DataError, OptionError
from polyalign.evaluation.bench import Bench, Measured
from polyalign.evaluation.bench import prompts_of as prompts_of
from polyalign.evaluation.generation import Judged, Samples, compared, contest, draw, judged
from polyalign.evaluation.likelihood import divergence, perplexity
from polyalign.evaluation.ranking import MEANING, accuracy_gain, ranking
from polyalign.evaluation.scoring import BUDGET, Progress, silent
from polyalign.evaluation.subject import Subject, open_subject, same_tokens
from polyalign.feedback.payloads import canonical
from polyalign.feedback.records import Demonstration, Pair, Prompt, Record, kind_name
from polyalign.metrics.comparison import paired_difference
from polyalign.protocols import Judge, Policy, Sampling


def evaluate(
    run_or_model: str | Path | Policy,
    data: str | Path | Sequence[str | Path] | Sequence[Record],
    baseline: str | Path | Policy | None = None,
    judge: Any = None,
    *,
    reference: str | Path | Policy | None = None,
    n: int = 1,
    samples: int = 64,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    beta: float | None = None,
    seed: int = 0,
    batch_tokens: int = BUDGET,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    save: bool = True,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure a run's final model, or any model, on held-out data.

    Pairs give ranking accuracy and calibration, demonstrations give perplexity; with a reference
    (a run's is the model it started from) ``samples`` answers estimate the divergence from it, 0
    leaves that out. A judge (see :func:`~polyalign.judges.load.load_judge`) scores ``n`` answers to
    each prompt; with a baseline (a run's default: its reference) it gives the win rate. Rows that
    carry their own verifier need no judge. Every figure has its interval and n; intervals resample
    prompts. A run's figures are also written to ``evaluation.json`` in its folder unless ``save``
    is False. Raises :class:`PolyalignError` for what the user can mend.
    """
    began = time.monotonic()
    if n < 1 or samples < 0:
        raise OptionError(f"n={n}, samples={samples} is not allowed.", "n >= 1 and samples >= 0.")
    records, source, rejected = _records(data, limit, columns)
    own = judge is None and isinstance(records[0], Prompt) and "spec" in records[0].meta
    critic = _judge("verifier" if own else judge)
    options: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
    }
    subject = open_subject(run_or_model, reference=reference, **options)
    if beta is not None:
        subject = replace(subject, beta=beta)
    out: dict[str, Any] = {
        "subject": subject.name,
        "reference": subject.reference_name,
        "data": _told(records, source, rejected),
        "seed": seed,
        "meaning": MEANING,
    }
    scoring: dict[str, Any] = {"budget": batch_tokens, "progress": progress}
    pairs = [r for r in records if isinstance(r, Pair)]
    if pairs:
        out |= _ranking(subject, pairs, scoring)
    shown = [r for r in records if isinstance(r, Demonstration)]
    if shown:
        out |= _perplexity(subject, shown, scoring)
    prompts = prompts_of(records)
    if samples and subject.reference is not None and _samples(subject.policy):
        law = Sampling(max_steps=max_new_tokens)
        part = prompts[:samples]
        drawn = draw(
            subject.policy, part, max(1, samples // len(part)), law, seed=seed, progress=progress
        )
        found = divergence(subject.policy, subject.reference, drawn, **scoring)
        out["divergence"] = found.to_json()
    if critic is not None:
        other = baseline
        second = subject.reference
        if other is not None:
            second = open_subject(other, **options).policy
        out["baseline"] = str(other) if other is not None else subject.reference_name
        how = Sampling(temperature, top_p, 0, max_new_tokens)
        mine = draw(subject.policy, prompts, n, how, seed=seed, progress=progress)
        theirs = None
        if second is not None:
            theirs = draw(
                second, prompts, n, how, seed=seed, progress=progress, what="sampling (baseline)"
            )
        out["judge"] = {
            "name": "verifier" if own else str(getattr(critic, "name", judge)),
            "sampling": {**asdict(how), "n": n},
            **_judged(critic, mine, theirs),
        }
    elif baseline is not None:
        raise OptionError("A baseline was given but no judge.", "Add judge=… to compare answers.")
    out["seconds"] = round(time.monotonic() - began, 1)
    if save and subject.folder is not None:
        before = _saved(subject.folder)
        _save(subject.folder, out | {k: before[k] for k in ("with",) if k in before})
    return out


def measure(
    run_or_model: str | Path | Policy,
    data: str | Path | Sequence[str | Path] | Sequence[Record],
    name: str,
    measurement: Callable[[Bench], Measured],
    *,
    options: Mapping[str, Any] | None = None,
    feedback: type[Record] = Prompt,
    reference: str | Path | Policy | None = None,
    judge: Any = None,
    samples: int = 64,
    max_new_tokens: int = 128,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    beta: float | None = None,
    seed: int = 0,
    batch_tokens: int = BUDGET,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    save: bool = True,
    progress: Progress = silent,
) -> dict[str, Any]:
    """One measurement of a run's final model, or of any model, as plain data under its ``name``.

    A run's ``evaluation.json`` keeps it beside what was measured before, unless ``save`` is False.
    ``options`` are written down with it. Raises :class:`PolyalignError` for what the user can mend,
    among it data that do not hold the kind of ``feedback`` that it reads.
    """
    began = time.monotonic()
    if samples < 0:
        raise OptionError(f"samples={samples} is not allowed.", "samples >= 0.")
    records, source, rejected = _records(data, limit, columns)
    if feedback is Pair and not isinstance(records[0], Pair):
        raise DataError(
            f"{name} reads pairs, and {source} holds {kind_name(type(records[0]))}.",
            "Give pairs (prompt, chosen, rejected).",
        )
    load: dict[str, Any] = {"device": device, "dtype": dtype}
    load["trust_remote_code"] = trust_remote_code
    subject = open_subject(run_or_model, reference=reference, **load)
    if beta is not None:
        subject = replace(subject, beta=beta)

    def beside(other: str) -> Subject:
        found = open_subject(other, **load)
        same_tokens(subject.policy, found.policy, other)
        return found

    bench = Bench(
        subject,
        records,
        beside,
        _judge(judge),
        samples,
        max_new_tokens,
        seed,
        batch_tokens,
        progress,
    )
    found = measurement(bench).to_json() | {
        "subject": subject.name,
        "reference": subject.reference_name,
        "options": dict(options or {}),
        "data": _told(records, source, rejected),
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
    }
    if save and subject.folder is not None:
        before = _saved(subject.folder)
        _save(subject.folder, before | {"with": {**before.get("with", {}), name: found}})
    return {"with": {name: found}}


def _told(records: Sequence[Record], source: str, rejected: int) -> dict[str, Any]:
    """The data in a few words."""
    kind = kind_name(type(records[0]))
    return {"source": source, "kind": kind, "records": len(records), "rejected": rejected}


def _saved(folder: Path) -> dict[str, Any]:
    """What was measured of a run before; nothing where the file is not there or damaged."""
    try:
        found = json.loads((folder / "evaluation.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _save(folder: Path, found: dict[str, Any]) -> None:
    write_json_atomic(folder / "evaluation.json", found)


def _records(
    data: Any, limit: int | None, columns: Mapping[str, str] | None
) -> tuple[Sequence[Record], str, int]:
    """Records that can be evaluated, where they come from, and how many rows were malformed."""
    if not isinstance(data, (str, Path)) and len(data) and isinstance(data[0], Record):
        records: Sequence[Record] = list(data)[:limit]
        source, rejected = "memory", 0
    else:
        from polyalign.feedback import read

        sources = [str(data)] if isinstance(data, (str, Path)) else [str(d) for d in data]
        found = read(sources, columns=dict(columns) if columns else None, limit=limit)
        records, source, rejected = found, ", ".join(sources), len(found.rejects)
    if not len(records):
        raise DataError(f"{source}: no usable example.", "Run: polyalign data check FILE")
    kind = type(records[0])
    if kind in (Pair, Demonstration, Prompt):
        return records, source, rejected
    from polyalign.feedback.conversion import AUTOMATIC, convert

    if (kind, Pair) not in AUTOMATIC:
        raise DataError(
            f"{source} holds {kind_name(kind)}; evaluation reads pairs, demonstrations or prompts.",
            "Convert it: polyalign data convert FILE --to pairs (or polyalign data pair)",
        )
    return list(convert(records, Pair)), source, rejected


def _judge(spec: Any) -> Judge | None:
    if spec is None:
        return None
    from polyalign.judges.load import load_judge

    return load_judge(spec)


def _samples(policy: Policy) -> bool:
    return "sample_rows" in policy.offers


def _ranking(subject: Subject, pairs: Sequence[Pair], scoring: dict[str, Any]) -> dict[str, Any]:
    after = ranking(subject.policy, subject.reference, pairs, beta=subject.beta, **scoring)
    out: dict[str, Any] = {"ranking": after.to_json()}
    if after.chosen_ref is not None and after.rejected_ref is not None:
        before = replace(
            after, chosen=after.chosen_ref, rejected=after.rejected_ref, chosen_ref=None,
            rejected_ref=None,
        )  # fmt: skip
        out["ranking_reference"] = before.to_json()
        out["ranking_gain"] = {
            by: accuracy_gain(after, before, by).to_json()
            for by in ("likelihood", "mean_likelihood")
        }
    return out


def _perplexity(
    subject: Subject, shown: Sequence[Demonstration], scoring: dict[str, Any]
) -> dict[str, Any]:
    after = perplexity(subject.policy, shown, **scoring)
    out: dict[str, Any] = {"perplexity": after.to_json()}
    if subject.reference is not None:
        before = perplexity(subject.reference, shown, **scoring)
        out["perplexity_reference"] = before.to_json()
        out["nats_gain"] = paired_difference(after.nll, before.nll, after.cluster).to_json()
    return out


def _judged(critic: Judge, mine: Samples, theirs: Samples | None) -> dict[str, Any]:
    """What the judge says: of our answers, of the baseline's, and of one against the other."""
    if getattr(critic, "pairwise", False):
        if theirs is None:
            raise OptionError(
                "This judge compares two answers, and there is no baseline.",
                "Add --baseline MODEL.",
            )
        return {**contest(mine, theirs, critic).to_json(), "answers": _answers(mine, theirs)}
    ours = judged(mine, critic)
    out: dict[str, Any] = ours.to_json()
    if theirs is not None:
        others = judged(theirs, critic)
        out["baseline"] = others.to_json()
        out["difference"] = gain(ours, others).to_json()
        both = compared(ours, others).to_json()
        out |= {"win_rate": both["win_rate"], "ties": both["ties"]}
    out["answers"] = ours.table()
    return out


def gain(after: Judged, before: Judged) -> Any:
    """Change of the mean score of each prompt, paired, with interval and sign-flip test."""
    a, b = after.per_prompt(), before.per_prompt()
    known = ~np.isnan(a - b)
    prompts = [canonical(p.prompt) for p in after.samples.prompts]
    return paired_difference(a[known], b[known], [c for c, kept in zip(prompts, known) if kept])


def _answers(mine: Samples, theirs: Samples) -> list[dict[str, Any]]:
    from polyalign.feedback.payloads import text_of

    return [
        {
            "key": prompt.key,
            "prompt": text_of(prompt.prompt),
            "answer": text_of(a),
            "baseline": text_of(b),
        }
        for prompt, a, b in zip(mine.repeated, mine.payloads, theirs.payloads)
    ]
