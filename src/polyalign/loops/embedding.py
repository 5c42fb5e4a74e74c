"""A data step that says how alike a prompt and its answers are, by embeddings.

Axes: N texts, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyalign.errors import DataError
from polyalign.feedback.payloads import text_of
from polyalign.feedback.records import Pair, Record
from polyalign.objectives.kernels import MEASURES, SIDES, Likeness, precision_of, unit_length

COLUMNS = ("embedding_prompt", "embedding_chosen", "embedding_rejected")
"""Where records bring embeddings: lists of numbers."""


@dataclass(frozen=True)
class Embed:
    """Pairs with inner products and distances between prompt and answers as numbers.

    ``encoder``: "policy" takes the means of the states of the policy that training began with;
    "given" the lists in the columns ``embedding_prompt``, ``embedding_chosen`` and
    ``embedding_rejected``; anything else is the folder of a sentence encoder. Embeddings are
    brought to length 1. The covariance of the Mahalanobis distance is that of the training records'
    embeddings, a share ``ridge`` of it replaced by a multiple of the identity.
    Raises :class:`DataError` where embeddings are missing or of unequal lengths.
    """

    encoder: str = "policy"
    ridge: float = 0.1

    held_out: ClassVar[bool] = True

    def __call__(self, records: Sequence[Record], ctx: Any) -> list[Record]:
        pairs = [record for record in records if isinstance(record, Pair)]
        vectors = self._vectors(pairs, ctx)
        precision = ctx.kept(
            f"embedding-precision-{ctx.stage}",
            lambda: precision_of(torch.cat(self._vectors(ctx.session.records, ctx)), self.ridge),
        )
        prompt, *answers = vectors
        fields: dict[str, Tensor] = {}
        for side, answer in zip(SIDES, answers, strict=True):
            likeness = Likeness.of(prompt, answer, precision)
            fields |= {f"{name}_{side}": getattr(likeness, name) for name in MEASURES}
        return [
            replace(pair, fields={**pair.fields, **{n: float(v[i]) for n, v in fields.items()}})
            for i, pair in enumerate(pairs)
        ]

    def _vectors(self, records: Sequence[Record], ctx: Any) -> list[Tensor]:
        """Embeddings of prompts, chosen and rejected answers, each [N, D]."""
        pairs = [record for record in records if isinstance(record, Pair)]
        if self.encoder == "given":
            return [unit_length(_column(pairs, name)) for name in COLUMNS]
        encode = ctx.encoder(self.encoder)
        texts = (
            [text_of(pair.prompt) for pair in pairs],
            [text_of(pair.chosen) for pair in pairs],
            [text_of(pair.rejected) for pair in pairs],
        )
        return [unit_length(encode(column)) for column in texts]


def _column(pairs: Sequence[Pair], name: str) -> Tensor:
    rows: list[list[float]] = []
    for pair in pairs:
        value = pair.meta.get(name)
        if not isinstance(value, (list, tuple)) or (rows and len(value) != len(rows[0])):
            raise DataError(
                f"Example {pair.key} has no '{name}' of the others' length.",
                "Bring embeddings as lists of one length, or use encoder=policy.",
            )
        rows.append([float(x) for x in value])
    found = torch.tensor(rows, dtype=torch.float64)
    if not bool(torch.isfinite(found).all()):
        raise DataError(f"'{name}' holds numbers that are not finite.", "Mend the embeddings.")
    return found
