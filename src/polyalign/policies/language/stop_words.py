"""Which tokens are function words of English: they say little about what differs in meaning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

STOP_WORDS = frozenset(
    """
    a an the this that these those some any each every no not nor
    i me my mine we us our ours you your yours he him his she her hers it its they them their theirs
    who whom whose which what
    am is are was were be been being do does did doing have has had having
    can could may might must shall should will would
    and but or so if because as until while than then though although whether
    of at by for with about against between into through during before after above below to from
    up down in out on off over under again further once
    here there when where why how all both few more most other such only own same too very just also
    """.split()  # noqa: SIM905 (words read better as prose)
)
"""Articles, pronouns, auxiliaries, conjunctions, prepositions and the commonest adverbs."""


def stop_words(tokenizer: Any, size: int) -> Tensor:
    """1 for each of ``size`` token ids whose text is one whole function word, [size]."""
    known = min(size, len(tokenizer))
    texts = tokenizer.batch_decode([[i] for i in range(known)])
    out = torch.zeros(size)
    found = [i for i, text in enumerate(texts) if text.strip().lower() in STOP_WORDS]
    out[found] = 1.0
    return out
