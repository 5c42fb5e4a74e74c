"""A tiny language with a known law and a known gold reward, for claims that need a language model.

A prompt asks for words that begin with a letter (``b:``). The corpus answers with one to six words
of a small lexicon, half of them drawn from the letter's own: a law whose every probability is
known. The gold reward is a program: the share of words that are known and begin with the letter,
less a share for what is no word. Labels are Bradley-Terry in it, with chosen noise and with a
chosen payment for length, so that length exploitation can be measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from polyalign.feedback.records import Binary, Demonstration, Pair, Prompt, Scored
from polyalign.protocols import Verdict

LEXICON: dict[str, tuple[str, ...]] = {
    "a": ("ant", "acorn", "arrow", "amber"),
    "b": ("bee", "birch", "bread", "button"),
    "c": ("cup", "cedar", "cloud", "carpet"),
    "d": ("dew", "daisy", "drift", "dinner"),
    "f": ("fog", "fern", "flute", "feather"),
    "g": ("gem", "grass", "glove", "garden"),
    "m": ("mud", "maple", "mirror", "meadow"),
    "r": ("rye", "river", "robin", "ribbon"),
}
"""Words by their first letter."""

WORDS = tuple(word for words in LEXICON.values() for word in words)
MOST = 6
OWN = 0.5
"""Largest number of words of a corpus answer, and the share drawn from the letter's own."""


@dataclass(frozen=True)
class TinyLm:
    """The language with feedback over it; completions come from the corpus's own law.

    ``noise``: share of labels flipped. ``length_pay``: how much a label pays for each character.
    ``scale``: the Bradley-Terry strength of the gold reward, which lies in [-1, 1].
    """

    noise: float = 0.0
    length_pay: float = 0.0
    scale: float = 4.0

    @staticmethod
    def make(noise: float = 0.0, length_pay: float = 0.0, scale: float = 4.0) -> TinyLm:
        """The world with these labels."""
        return TinyLm(noise, length_pay, scale)

    @property
    def prompts(self) -> tuple[str, ...]:
        """One prompt a letter."""
        return tuple(f"{letter}:" for letter in LEXICON)

    # The corpus's law and the gold reward.

    def log_probability(self, prompt: str, answer: str) -> float:
        """Natural log-probability of a whole answer under the corpus; -inf for any other text."""
        words = answer.split()
        if not 1 <= len(words) <= MOST or answer != " " + " ".join(words):
            return -math.inf
        total = -math.log(MOST)
        for word in words:
            if word not in WORDS:
                return -math.inf
            own = OWN / len(LEXICON[prompt[0]]) if word[0] == prompt[0] else 0.0
            total += math.log(own + (1 - OWN) / len(WORDS))
        return total

    def entropy(self) -> float:
        """Entropy of a corpus answer, nats: what no model's mean loss an answer can fall below."""
        own = OWN / 4 + (1 - OWN) / len(WORDS)
        other = (1 - OWN) / len(WORDS)
        word = -4 * own * math.log(own) - (len(WORDS) - 4) * other * math.log(other)
        return math.log(MOST) + (1 + MOST) / 2 * word

    def reward(self, prompt: str, answer: str) -> float:
        """Share of words that are known and begin with the letter, less that of unknown ones.

        An answer without words gets -1.
        """
        words = answer.split()
        if not words:
            return -1.0
        right = sum(word in WORDS and word[0] == prompt[0] for word in words)
        wrong = sum(word not in WORDS for word in words)
        return (right - wrong) / len(words)

    def judge(
        self, prompts: Sequence[Any], completions: Sequence[Any], meta: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        """Gold rewards [N] of completions, as a judge gives them."""
        gold = [self.reward(p, y) for p, y in zip(prompts, completions, strict=True)]
        return Verdict(score=torch.tensor(gold, dtype=torch.float64))

    # Feedback: every draw is a function of the seed.

    def answers(self, prompt: str, n: int, draw: torch.Generator) -> list[str]:
        """``n`` answers from the corpus's law."""
        found = []
        for _ in range(n):
            count = 1 + int(torch.randint(MOST, (1,), generator=draw))
            own = torch.rand(count, generator=draw) < OWN
            pick = torch.randint(10**6, (count,), generator=draw).tolist()
            words = [
                (LEXICON[prompt[0]] if mine else WORDS)[i % (4 if mine else len(WORDS))]
                for mine, i in zip(own.tolist(), pick, strict=True)
            ]
            found.append(" " + " ".join(words))
        return found

    def _each(self, n: int, seed: int, answers: int) -> list[tuple[str, list[str]]]:
        """``n`` prompts in turn, each with some answers."""
        draw = torch.Generator().manual_seed(seed)
        prompts = self.prompts
        return [
            (prompts[i % len(prompts)], self.answers(prompts[i % len(prompts)], answers, draw))
            for i in range(n)
        ]

    def asked(self) -> list[Prompt]:
        """Each prompt once."""
        return [Prompt(key=prompt, prompt=prompt) for prompt in self.prompts]

    def demonstrations(self, n: int = 2000, seed: int = 0) -> list[Demonstration]:
        """The corpus."""
        return [
            Demonstration(key=f"{i}", prompt=prompt, completion=answer)
            for i, (prompt, (answer,)) in enumerate(self._each(n, seed, 1))
        ]

    def pairs(self, n: int = 256, seed: int = 0) -> list[Pair]:
        """Labelled pairs of different corpus answers; ``meta["flipped"]`` tells a flipped label."""
        luck = torch.Generator().manual_seed(seed + 1)
        made = []
        for i, (prompt, (first, second)) in enumerate(self._each(n, seed, 2)):
            z = self.scale * (self.reward(prompt, first) - self.reward(prompt, second))
            z += self.length_pay * (len(first) - len(second))
            wins = float(torch.rand(1, generator=luck)) < 1 / (1 + math.exp(-z))
            flip = float(torch.rand(1, generator=luck)) < self.noise
            best, worst = (first, second) if wins != flip else (second, first)
            if best == worst:
                continue
            scores = {
                "score_chosen": self.reward(prompt, best),
                "score_rejected": self.reward(prompt, worst),
            }
            meta = {"flipped": flip}
            made.append(
                Pair(key=f"{i}", prompt=prompt, chosen=best, rejected=worst, fields=scores,
                     meta=meta)
            )  # fmt: skip
        return made

    def binary(self, n: int = 256, seed: int = 0) -> list[Binary]:
        """Thumbs up with probability sig(scale (gold - 1/2)), flips included."""
        luck = torch.Generator().manual_seed(seed + 1)
        made = []
        for i, (prompt, (answer,)) in enumerate(self._each(n, seed, 1)):
            p = 1 / (1 + math.exp(-self.scale * (self.reward(prompt, answer) - 0.5)))
            p = (1 - self.noise) * p + self.noise * (1 - p)
            label = float(torch.rand(1, generator=luck)) < p
            made.append(Binary(key=f"{i}", prompt=prompt, completion=answer, label=label))
        return made

    def lists(self, n: int = 96, seed: int = 0, size: int = 4) -> list[Scored]:
        """Lists of corpus answers with their gold rewards."""
        return [
            Scored(
                key=f"{i}",
                prompt=prompt,
                completions=tuple(answers),
                scores=tuple(self.reward(prompt, y) for y in answers),
            )
            for i, (prompt, answers) in enumerate(self._each(n, seed, size))
        ]
