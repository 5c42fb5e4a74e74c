"""Fold an adapter into its base, and show that the merged model says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyalign.errors import ModelError, NumericsError
from polyalign.policies.language import folders, models, quantised
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.types import Rows

PROBES = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Write a short poem about the sea.", "The waves return, the waves depart.\nSalt on the wind."),
    ("def add(a, b):", "\n    return a + b\n"),
)
"""Text on which a merged model and its parts are compared."""

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}
"""Largest difference of a token's log-probability that rounding explains; else 0.5."""


def merge(adapter: str | Path, out: str | Path, *, dtype: str = "auto") -> float:
    """Write the base with the adapter folded in to ``out``; return the largest difference.

    The difference is that of token log-probabilities between base with adapter and the written
    model, loaded again. ``dtype`` "auto" writes the base's own; folding is in float32. A base that
    was quantised in training is folded with the numbers that its packed weights stand for.

    Raises :class:`ModelError` when ``adapter`` is none or ``out`` is taken, and
    :class:`NumericsError` when the merged model says something else.
    """
    folder, out = models.resolve(adapter), Path(out)
    if not folders.is_adapter(folder):
        raise ModelError(f"{adapter} is not an adapter.", "Name the folder of a LoRA run's final/.")
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"The folder {out} is not empty.", "Choose another output folder.")
    policy = LanguagePolicy.from_pretrained(folder, dtype="float32", device="cpu", frozen=True)
    if quantised.foreign(policy.model):
        raise ModelError(
            f"The base of {adapter} is quantised by a library that does not give its weights back.",
            "Use the adapter beside its base as it is.",
        )
    before = _probe(policy)
    quantised.widen(policy.peft)
    merged: Any = quantised.as_configured(policy.peft.merge_and_unload())
    written = _stored(folders.adapter_base(folder)) if dtype == "auto" else getattr(torch, dtype)
    LanguagePolicy(merged, policy.tokenizer, live=False).save(out, written)
    after = _probe(LanguagePolicy.from_pretrained(out, dtype="float32", device="cpu", frozen=True))
    gap = float((before - after).abs().max())
    if not gap <= TOLERANCE.get(written, 0.5):
        raise NumericsError(
            f"The merged model in {out} differs from its parts by {gap:.3g} nats in a token.",
            "Merge into float32 (dtype=float32), or use the adapter as it is.",
        )
    return gap


def _probe(policy: LanguagePolicy) -> Tensor:
    rows = [policy.encode(prompt, completion) for prompt, completion in PROBES]
    with torch.no_grad():
        return policy.score(Rows.collate(rows)).logp


def _stored(base: str) -> torch.dtype:
    """The dtype that a model folder names for its weights."""
    name = folders.read_json(models.resolve(base) / "config.json")
    found = getattr(torch, str(name.get("dtype", name.get("torch_dtype", "float32"))), None)
    return found if isinstance(found, torch.dtype) else torch.float32
