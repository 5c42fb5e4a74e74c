"""Advice in plain words, read off a run's metrics: what is going wrong and what to do about it.

Pure: rows of metrics.jsonl in, sentences out. The same function speaks during training and in
the report. A rule fires on trends that stand out from the noise between batches, and each speaks
of one thing once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, variance
from typing import Any

from polyalign.feedback.payloads import text_of
from polyalign.metrics.sequences import fault

Row = Mapping[str, Any]
Point = tuple[int, float]


@dataclass(frozen=True)
class Advice:
    """One finding: ``code`` names it for programs, ``text`` says it, ``step`` is where it shows."""

    code: str
    text: str
    step: int


LARGE_KL = 25.0
"""Nats a sequence. Best-of-16 sampling costs 1.8; careful online learning ends below 20."""


PATIENCE = 2
"""Evaluations in a row that a falling pair of indicators has to show."""

LEAST_FALL = 1e-3
"""Share by which they fall at least: evaluation repeats its examples, so little is needed."""


def advise(history: Sequence[Row], samples: Sequence[Row] = ()) -> list[Advice]:
    """What stands out in a run's rows, the gravest first.

    ``history``: rows of metrics.jsonl; ``samples``: rows of samples.jsonl
    (``before``, ``after``). Rows and names that are missing only silence the rules that need them.
    """
    found = [rule(history) for rule in RULES]
    return [advice for advice in (*found, degenerate(samples, _last_step(history))) if advice]


def series(history: Sequence[Row], name: str) -> list[Point]:
    """(step, value) of a metric, in order, finite values only; names with ``eval_`` are eval's."""
    split = "eval" if name.startswith("eval_") else "train"
    return [
        (int(row.get("step", 0)), float(row[name]))
        for row in history
        if row.get("split", "train") == split and _finite(row.get(name))
    ]


def diverged(history: Sequence[Row]) -> Advice | None:
    """Loss or gradient norm not finite, or the gradient far above what it was."""
    for row in history:
        for name in ("loss", "grad_norm"):
            value = row.get(name)
            if isinstance(value, float) and not math.isfinite(value):
                return Advice(
                    "divergence",
                    f"The {'loss' if name == 'loss' else 'gradient'} is no longer a number: "
                    "training has broken down and everything after this step is worthless. Go back "
                    "to an earlier checkpoint and use a lower learning rate (a third of it), a "
                    "longer warmup, or dtype=float32.",
                    int(row.get("step", 0)),
                )
    norms, losses = series(history, "grad_norm"), series(history, "loss")
    if len(norms) < 12 or len(losses) < 12:
        return None
    usual = median(v for _, v in norms[:-3])
    recent = [v for _, v in norms[-3:]]
    rise = fmean(v for _, v in losses[-3:]) - median(v for _, v in losses[:-3])
    spread = math.sqrt(variance([v for _, v in losses[:-3]]))
    if usual > 0 and min(recent) > 10 * usual and rise > 3 * spread:
        return Advice(
            "divergence",
            f"The gradient is {min(recent) / usual:.0f} times larger than usual and the loss "
            "climbs: training is breaking down. Use a lower learning rate (a third of it) or a "
            "longer warmup, and start from the last checkpoint before this step.",
            norms[-3][0],
        )
    return None


def displaced(history: Sequence[Row]) -> Advice | None:
    """Chosen and rejected answers both lose probability while the margin between them grows."""
    # Rewards are measured against the reference on the same batch, so they carry less noise than
    # raw log-probabilities of ever new answers; evaluation rows carry none.
    for prefix in ("eval_rewards", "eval_logps", "rewards", "logps"):
        chosen = series(history, f"{prefix}/chosen")
        rejected = series(history, f"{prefix}/rejected")
        if len(chosen) < 3 or len(chosen) != len(rejected):
            continue
        gap = [(s, c - r) for (s, c), (_, r) in zip(chosen, rejected)]
        falls, sinks, grows = (
            _moved(chosen, -1, prefix),
            _moved(rejected, -1, prefix),
            _moved(gap, +1, prefix),
        )
        if not (falls and sinks and grows):
            return None
        how = _fall(history)
        return Advice(
            "displacement",
            "The preferred and the rejected answers have both become less likely"
            f"{how} while the gap between them grows: the model pushes both away, and the "
            "probability goes to answers that are in neither column. A small drop is usual and "
            "harmless. Read the samples: if they got worse, use a lower learning rate or fewer "
            "steps, hold the model closer to its reference (a larger beta), add a likelihood term "
            "on the preferred answers where the method has one, or first fine-tune on the "
            "preferred answers.",
            chosen[-1][0],
        )
    return None


def far(history: Sequence[Row]) -> Advice | None:
    """The divergence from the reference is large."""
    kl = series(history, "eval_kl") or series(history, "kl")
    recent = [v for _, v in kl[-5:]]
    if len(recent) >= 3 and median(recent) > LARGE_KL:
        return Advice(
            "kl",
            f"The model is {median(recent):.0f} nats per answer away from where it started (more "
            f"than {LARGE_KL:.0f} is a lot): what it knew before may be lost, and a learned "
            "judge is no longer to be trusted on such answers. Strengthen the pull to the "
            "reference (a larger beta or KL coefficient), or stop earlier.",
            kl[-1][0],
        )
    return None


def still(history: Sequence[Row]) -> Advice | None:
    """Nothing is learned: preference accuracy stays at a coin's, or the loss does not move."""
    rows = [row for row in history if row.get("split", "train") == "train"]
    if not rows or not (
        len(rows) >= 100 or (len(rows) >= 20 and float(rows[-1].get("epoch", 0)) >= 0.95)
    ):
        return None
    step = int(rows[-1].get("step", 0))
    accuracy = [v for _, v in series(history, "rewards/accuracies")]
    advice = (
        "Look at the data (polyalign data check: contradictions, chosen equal to rejected), raise "
        "the learning rate threefold, or train for longer. If the labels are noisy or the answers "
        "nearly alike, this may be all there is to learn."
    )
    if len(accuracy) >= 20:
        late = accuracy[-len(accuracy) // 3 :]
        middle, half = fmean(late), 2 * _error(late)
        # An interval that also reaches far above a coin says that little is known, not that.
        if middle - half <= 0.5 and middle + half < 0.65:
            return Advice(
                "no-learning",
                "Nothing learned yet: the model prefers the preferred answer in "
                f"{100 * middle:.0f} % of training pairs (interval {100 * (middle - half):.0f} to "
                f"{100 * min(middle + half, 1):.0f} %), which a coin also reaches. {advice}",
                step,
            )
        return None
    losses = series(history, "loss")
    reward = series(history, "reward")
    # Losses of different batches differ by more than twenty steps of learning change them.
    moving = [s for s in (losses, reward) if len(s) >= 40]
    if moving and not any(_moved(s, -1) or _moved(s, +1) for s in moving):
        return Advice(
            "no-learning",
            f"Nothing learned yet: the loss has not moved beyond its noise in {len(rows)} steps. "
            f"{advice}",
            step,
        )
    return None


def overfitted(history: Sequence[Row]) -> Advice | None:
    """Held-out loss rises while training loss goes on falling."""
    held, trained = series(history, "eval_loss"), series(history, "loss")
    if len(held) < 3 or len(trained) < 6:
        return None
    at, best = min(held, key=lambda point: point[1])
    slack = max(0.01, 0.02 * abs(best))
    later = [v for s, v in held if s > at]
    before = [v for s, v in trained if s <= at][-5:]
    if len(later) < 2 or min(later[-2:]) <= best + slack or not before:
        return None
    if fmean(v for _, v in trained[-5:]) >= fmean(before):
        return None
    return Advice(
        "overfitting",
        f"Since step {at} the loss on held-out examples has risen (from {best:.3g} to "
        f"{later[-1]:.3g}) while the training loss falls: the model learns the training examples "
        "by heart. Stop near that step (early_stopping=eval_loss), use fewer epochs or a lower "
        "learning rate, or bring more data.",
        at,
    )


def scattered(history: Sequence[Row]) -> Advice | None:
    """The likeliest tokens lose mass and entropy together while the margin grows."""
    at = turning_point(history)
    if at is None:
        return None
    return Advice(
        "overoptimisation",
        f"Since step {at} the likeliest tokens of preferred answers lose both probability and "
        "entropy while the margin still grows: the model spreads over unlikely tokens, which has "
        "been seen to come before worse answers. Compare samples of before and after that step, "
        "and stop near it if they got worse, or hold the model closer to its reference.",
        at,
    )


def turning_point(history: Sequence[Row], patience: int = PATIENCE) -> int | None:
    """The first evaluation after which ``patience`` in a row brought less top-k mass and less
    top-k entropy with a larger margin; its step, or None.

    A falling entropy with rising mass is plain sharpening and no sign of it.
    Source: arXiv 2410.11677.
    """
    names = ("eval_top_mass", "eval_top_entropy", "eval_rewards/margins")
    columns = [dict(series(history, name)) for name in names]
    steps = sorted(set(columns[0]).intersection(*columns[1:]))
    points = [tuple(column[step] for column in columns) for step in steps]
    bad = 0
    for at in range(1, len(points)):
        (mass, entropy, margin), (was_mass, was_entropy, was_margin) = points[at], points[at - 1]
        turns = (
            was_mass - mass > LEAST_FALL * was_mass
            and was_entropy - entropy > LEAST_FALL * was_entropy
            and margin > was_margin
        )
        bad = bad + 1 if turns else 0
        if bad == patience:
            return steps[at - patience]
    return None


def drifted(history: Sequence[Row]) -> Advice | None:
    """Sampled answers become much longer or shorter."""
    sizes = series(history, "completions/mean_length")
    if len(sizes) < 10:
        return None
    w = max(3, len(sizes) // 5)
    early, late = fmean(v for _, v in sizes[:w]), fmean(v for _, v in sizes[-w:])
    if early <= 0 or not (late > 1.5 * early or late < early / 1.5):
        return None
    longer = late > early
    return Advice(
        "length",
        f"Answers have become {'longer' if longer else 'shorter'}: {early:.0f} steps at the start, "
        f"{late:.0f} now. "
        + (
            "Length alone often earns reward without being better: check the judge for length bias "
            "and use a length-aware reward or a penalty."
            if longer
            else "The judge may reward brevity, or the model gives up early: read the samples."
        ),
        sizes[-1][0],
    )


def alike(history: Sequence[Row]) -> Advice | None:
    """Rewards do not differ any more, so there is nothing to compare."""
    spread = series(history, "reward_std")
    if len(spread) >= 10 and all(v < 1e-6 for _, v in spread[-10:]):
        return Advice(
            "no-spread",
            "The judge gives every sampled answer the same reward, so there is nothing to learn "
            "from. Use prompts that are neither too easy nor too hard, a finer judge, a higher "
            "temperature, or more samples a prompt.",
            spread[-10][0],
        )
    return None


def degenerate(samples: Sequence[Row], step: int = 0) -> Advice | None:
    """Sampled answers loop or are empty (words are the steps)."""
    texts = [row for row in samples if row.get("after") is not None]
    seen = [fault(text_of(row["after"]).split()) for row in texts]
    before = [fault(text_of(row["before"]).split()) for row in texts if row.get("before")]
    bad = sum(f in ("empty", "loop") for f in seen)
    was = sum(f in ("empty", "loop") for f in before)
    if bad == 0 or bad <= max(0.2 * len(texts), was):
        return None
    return Advice(
        "degenerate",
        f"{bad} of {len(texts)} sampled answers are empty or repeat themselves ({was} before "
        "training): the model is being damaged. Use a lower learning rate or fewer steps, hold it "
        "closer to its reference, and check that answers in the data end properly.",
        step,
    )


RULES: tuple[Callable[[Sequence[Row]], Advice | None], ...] = (
    diverged,
    displaced,
    far,
    overfitted,
    scattered,
    still,
    alike,
    drifted,
)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _last_step(history: Sequence[Row]) -> int:
    return max((int(row.get("step", 0)) for row in history), default=0)


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    return math.sqrt(variance(values) / len(values)) if len(values) > 1 else math.inf


def _moved(points: Sequence[Point], sign: int, name: str = "") -> bool:
    """Whether the last third lies on the ``sign`` side of the first by twice the noise.

    Evaluation repeats the same examples, so two different values there are a difference.
    """
    values = [sign * v for _, v in points]
    if name.startswith("eval_"):
        size = max(abs(v) for v in values)
        return values[-1] - values[0] > 1e-3 * max(size, 1e-9)
    if len(values) < 12:
        return False
    third = len(values) // 3
    first, last = values[:third], values[-third:]
    return fmean(last) - fmean(first) > 2 * math.hypot(_error(first), _error(last))


def _fall(history: Sequence[Row]) -> str:
    """By how many nats both fell, where raw log-probabilities tell it."""
    for prefix in ("eval_logps", "logps"):
        parts = []
        for role in ("chosen", "rejected"):
            points = series(history, f"{prefix}/{role}")
            w = 1 if prefix.startswith("eval_") else max(1, len(points) // 3)
            if len(points) >= 2 * w:
                parts.append(fmean(v for _, v in points[:w]) - fmean(v for _, v in points[-w:]))
        if len(parts) == 2 and min(parts) > 0:
            return f" (by {parts[0]:.1f} and {parts[1]:.1f} nats per answer)"
    return ""
