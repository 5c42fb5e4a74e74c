"""``evaluate``: everything that the given data and judge can tell about a model, as plain data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from polyalign.errors import DataError, OptionError
from polyalign.evaluation.bench import Bench, Measured
from polyalign.evaluation.bench import prompts_of as prompts_of
from polyalign.evaluation.generation import Judged, Samples, compared, contest, draw, judged
from polyalign.evaluation.given import Given, judge_of, kept, saved, told
from polyalign.evaluation.likelihood import divergence, perplexity
from polyalign.evaluation.ranking import MEANING, accuracy_gain, ranking
from polyalign.evaluation.subject import Subject, same_tokens
from polyalign.feedback.payloads import canonical
from polyalign.feedback.records import Demonstration, Pair, Prompt, Record, kind_name
from polyalign.metrics.comparison import paired_difference
from polyalign.policies.asked import plainly
from polyalign.protocols import Judge, Policy, Sampling


def evaluate(
    run_or_model: str | Path | Policy,
    data: str | Path | Sequence[str | Path] | Sequence[Record],
    baseline: str | Path | Policy | None = None,
    judge: Any = None,
    *,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    **given: Any,
) -> dict[str, Any]:
    """Measure a run's final model, or any model, on held-out data.

    Pairs give ranking accuracy and calibration, demonstrations give perplexity; with a reference
    (a run's is the model it started from) ``samples`` answers estimate the divergence from it, 0
    leaves that out. A judge (see :func:`~polyalign.judges.load.load_judge`) scores ``n`` answers to
    each prompt; with a baseline (a run's default: its reference) it gives the win rate. Rows that
    carry their own verifier need no judge. A model that was trained on conditioned prompts is asked
    with its condition; a baseline is asked as it was trained to be. Every figure has its interval
    and n; intervals resample prompts. A run's figures are also written to ``evaluation.json`` in
    its folder unless ``save`` is False. ``given``: the fields of
    :class:`~polyalign.evaluation.given.Given`. Raises :class:`PolyalignError` for what the user can
    mend.
    """
    began = time.monotonic()
    setting = Given.of(given)
    samples, progress, seed = setting.samples, setting.progress, setting.seed
    if n < 1:
        raise OptionError(f"n={n} is not allowed.", "n >= 1.")
    records, source, rejected = setting.records(data)
    own = judge is None and isinstance(records[0], Prompt) and "spec" in records[0].meta
    critic = judge_of("verifier" if own else judge)
    subject = setting.subject(run_or_model)
    out: dict[str, Any] = {
        "subject": subject.name,
        "reference": subject.reference_name,
        **_condition(subject),
        "data": told(records, source, rejected),
        "seed": seed,
        "meaning": MEANING,
    }
    scoring: dict[str, Any] = {"budget": setting.batch_tokens, "progress": progress}
    diverges = samples > 0 and subject.reference is not None and _samples(subject.policy)
    if setting.sampler not in (None, "own") and critic is None and not diverges:
        raise OptionError(
            f"sampler={setting.sampler} has no effect, as nothing is sampled here.",
            "Add a judge or a reference, or leave sampler out.",
        )
    pairs = [r for r in records if isinstance(r, Pair)]
    if pairs:
        out |= _ranking(subject, pairs, scoring)
    shown = [r for r in records if isinstance(r, Demonstration)]
    if shown:
        out |= _perplexity(subject, shown, scoring)
    prompts = prompts_of(records)
    if diverges and subject.reference is not None:
        law = Sampling(max_steps=setting.max_new_tokens)
        part = prompts[:samples]
        drawn = draw(
            subject.policy, part, max(1, samples // len(part)), law, seed=seed, progress=progress
        )
        found = divergence(subject.policy, subject.reference, drawn, **scoring)
        out["divergence"] = found.to_json()
    if critic is not None:
        # The start was never trained on conditions; another model brings its own.
        second = None if subject.reference is None else plainly(subject.reference)
        if baseline is not None:
            second = setting.beside(baseline).policy
        out["baseline"] = str(baseline) if baseline is not None else subject.reference_name
        how = Sampling(temperature, top_p, 0, setting.max_new_tokens)
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
    if setting.save and subject.folder is not None:
        before = saved(subject.folder)
        kept(subject.folder, out | {k: before[k] for k in ("with",) if k in before})
    return out


def measure(
    run_or_model: str | Path | Policy,
    data: str | Path | Sequence[str | Path] | Sequence[Record],
    name: str,
    measurement: Callable[[Bench], Measured],
    *,
    options: Mapping[str, Any] | None = None,
    feedback: type[Record] = Prompt,
    judge: Any = None,
    **given: Any,
) -> dict[str, Any]:
    """One measurement of a run's final model, or of any model, as plain data under its ``name``.

    A run's ``evaluation.json`` keeps it beside what was measured before, unless ``save`` is False.
    ``options`` are written down with it; ``given`` are the fields of
    :class:`~polyalign.evaluation.given.Given`. Raises :class:`PolyalignError` for what the user can
    mend, among it data that do not hold the kind of ``feedback`` that it reads.
    """
    began = time.monotonic()
    setting = Given.of(given)
    records, source, rejected = setting.records(data)
    if feedback is Pair and not isinstance(records[0], Pair):
        raise DataError(
            f"{name} reads pairs, and {source} holds {kind_name(type(records[0]))}.",
            "Give pairs (prompt, chosen, rejected).",
        )
    subject = setting.subject(run_or_model)

    def beside(other: str) -> Subject:
        found = setting.beside(other)
        same_tokens(subject.policy, found.policy, other)
        return found

    bench = Bench(
        subject,
        records,
        beside,
        judge_of(judge),
        setting.samples,
        setting.max_new_tokens,
        setting.seed,
        setting.batch_tokens,
        setting.progress,
    )
    found = measurement(bench).to_json() | {
        "subject": subject.name,
        "reference": subject.reference_name,
        **_condition(subject),
        "options": dict(options or {}),
        "data": told(records, source, rejected),
        "seed": setting.seed,
        "seconds": round(time.monotonic() - began, 1),
    }
    if setting.save and subject.folder is not None:
        before = saved(subject.folder)
        kept(subject.folder, before | {"with": {**before.get("with", {}), name: found}})
    return {"with": {name: found}}


def _condition(subject: Subject) -> dict[str, Any]:
    """With what the policy was asked, where it was asked with anything."""
    if subject.condition is None:
        return {}
    return {"condition": {"value": subject.condition.value, "text": subject.condition.told()}}


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
