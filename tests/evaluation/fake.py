"""A tiny policy for tests: letters drawn independently, an end token, text payloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from polyalign.feedback.payloads import text_of
from polyalign.protocols import PolicyScores, Rollout, Sampling
from polyalign.types import Row, Rows

LETTERS = "abcdefgh"
END = len(LETTERS)


class Letters:
    """Each step draws one of eight letters or the end, by ``weights`` (and nothing else)."""

    offers = frozenset({"sample_rows"})

    def __init__(self, **weights: float) -> None:
        law = torch.ones(END + 1, dtype=torch.float64)
        for letter, weight in weights.items():
            law[END if letter == "end" else LETTERS.index(letter)] = weight
        self.law = (law / law.sum()).log()
        self.calls: list[int] = []

    def encode(self, context: Any, completion: Any) -> Row:
        text = "" if completion is None else text_of(completion)
        steps = [LETTERS.index(c) for c in text] + [END] * (completion is not None)
        return Row(
            tuple(ord(c) for c in text_of(context)),
            torch.tensor(steps, dtype=torch.long),
            torch.ones(len(steps), dtype=torch.bool),
        )

    def score(
        self, rows: Rows, want: frozenset[str] = frozenset(), draws: Any = None, against: Any = None
    ) -> PolicyScores:
        self.calls.append(len(rows))
        return PolicyScores(torch.where(rows.mask, self.law[rows.steps], 0.0))

    def sample(
        self, contexts: Sequence[Any], n: int, how: Sampling, seeds: Sequence[int]
    ) -> Rollout:
        rows, texts, finished, logps = [], [], [], []
        for i, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            steps: list[int] = []
            while len(steps) < how.max_steps and (not steps or steps[-1] != END):
                steps.append(int(torch.multinomial(self.law.exp(), 1, generator=generator)))
            done = steps[-1] == END
            rows.append(
                Row(
                    tuple(ord(c) for c in text_of(contexts[i // n])),
                    torch.tensor(steps),
                    torch.ones(len(steps), dtype=torch.bool),
                )
            )
            texts.append("".join(LETTERS[s] for s in (steps[:-1] if done else steps)))
            finished.append(done)
            logps.append(self.law[torch.tensor(steps)])
        logp = torch.nn.utils.rnn.pad_sequence(logps, batch_first=True)
        return Rollout(tuple(rows), logp, logp, torch.tensor(finished), tuple(texts), n)

    def freeze(self) -> Letters:
        return self

    def trainable(self) -> dict[str, Any]:
        return {}

    def load(self, tensors: Mapping[str, Any]) -> None: ...

    def build(self, kind: str, options: Mapping[str, Any]) -> torch.nn.Module:
        raise NotImplementedError
