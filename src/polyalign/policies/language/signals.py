"""What a language model's law at a step says beside the step's log-probability.

Axes: M steps, V tokens. All in nats, in the dtype of the logits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polyalign.metrics.concentration import concentration
from polyalign.policies.divergences import between
from polyalign.types import signal

LAW = frozenset({"entropy", "log_collision", "max_prob", "top_mass", "top_entropy"})
"""Signals of one law."""

AGAINST = frozenset(
    {
        "kl(ref|policy)",
        "kl(policy|ref)",
        "js(policy|ref)",
        "tv(policy|ref)",
        "log_overlap(policy|ref)",
    }
)
"""Signals of the policy's law and a live reference's."""

ROW = frozenset({"steps", "stop_word"})
"""Signals of a row alone."""


def two_laws(want: frozenset[str]) -> frozenset[str]:
    """The signals in ``want`` that read two laws."""
    return frozenset(name for name in want if signal(name)[0] in AGAINST)


def quantities(
    logits: Tensor, targets: Tensor, want: frozenset[str], reference: Tensor | None = None
) -> Mapping[str, Tensor]:
    """``logp`` of ``targets`` [M] under ``logits`` [M, V], and the signals in ``want``, each [M].

    ``reference`` [M, V] are the other law's logits, constant.
    """
    largest = logits.max(-1, keepdim=True).values.detach()
    total = (logits - largest).exp().sum(-1, keepdim=True)
    chosen = logits.gather(-1, targets.unsqueeze(-1)) - largest
    out = {"logp": (chosen - total.log()).squeeze(-1)}
    if not want:
        return out
    law = torch.log_softmax(logits, -1)
    if "entropy" in want:
        out["entropy"] = -(law.exp() * law).sum(-1)
    if "log_collision" in want:
        out["log_collision"] = torch.logsumexp(2 * law, -1)
    if "max_prob" in want:
        out["max_prob"] = law.max(-1).values.exp()
    for name in want:
        base, k = signal(name)
        if base in ("top_mass", "top_entropy"):
            found = concentration(law, k)
            out[name] = found.mass if base == "top_mass" else found.entropy
    if two_laws(want) and reference is not None:
        ref = torch.log_softmax(reference, -1)
        for name in two_laws(want):
            out[name] = between(name, law, ref)
    return out
