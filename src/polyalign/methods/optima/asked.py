"""Known optima of methods that write what they want into the prompt.

Each prompt of the bandit is the one question, asked for one score; its gold reward is how near an
answer's score comes to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from polyalign.feedback.conditioning import Goals, RewardInPrompt
from polyalign.feedback.records import Pair, Scored
from polyalign.methods.optima.known import Known
from polyalign.policies.tabular import NamedPrompts
from polyalign.worlds.bandit import Bandit

QUESTION = "How good?"
DIFFERENT = (1.0, 3.0, 4.0, 6.0, 9.0)
EQUAL = (1.0, 1.0, 4.0, 4.0, 9.0)
"""Scores of the five answers."""

ASKED = (1.0, 4.0, 9.0)
"""The scores among the equal ones."""


def _nearness(asked: tuple[float, ...], scores: tuple[float, ...]) -> Any:
    """The world's rewards: minus the squared distance of an answer's score from the one asked."""

    def world(made: Bandit, options: Mapping[str, Any]) -> Bandit:
        goal = torch.tensor(asked, dtype=torch.float64).unsqueeze(-1)
        return replace(made, reward=-((goal - torch.tensor(scores, dtype=torch.float64)) ** 2))

    return world


def _pairs(world: Bandit) -> list[Pair]:
    """Every pair of answers once, the better one preferred, with their scores."""
    return [
        Pair(
            key=f"{b}>{a}",
            prompt=QUESTION,
            chosen=b,
            rejected=a,
            fields={"score_chosen": DIFFERENT[b], "score_rejected": DIFFERENT[a]},
        )
        for a, b in combinations(range(5), 2)
    ]


def _asked_for_goals(world: Bandit) -> NamedPrompts:
    goals = Goals(1.0, 10.0, 10.0)
    return NamedPrompts(world.start, [goals.ask(QUESTION, score) for score in DIFFERENT])


def _asked_for_rewards(world: Bandit) -> NamedPrompts:
    asked = RewardInPrompt()
    return NamedPrompts(world.start, [asked.ask(QUESTION, score) for score in ASKED])


def _as_asked(world: Bandit, options: Mapping[str, Any]) -> Tensor:
    """Mass shared by the answers that have just the score asked for."""
    return torch.where(world.reward == 0, 0.0, -torch.inf).log_softmax(-1)


KNOWN: dict[str, tuple[Known, ...]] = {
    "reward-augmented": (
        Known(
            "asked for a score, the answer that has it (labels here are certain)",
            make={"prompts": 5, "responses": 5},
            labels=_nearness(DIFFERENT, DIFFERENT),
            feedback=_pairs,
            policy=_asked_for_goals,
            law=_as_asked,
            hyper={"beta": 1.0},
            tolerance=1e-3,
            steps=100,
        ),
    ),
    "offline-rlhf": (
        Known(
            "mu on the answers that have the score asked for",
            make={"prompts": 3, "responses": 5},
            labels=_nearness(ASKED, EQUAL),
            feedback=lambda w: [
                Scored(key="0", prompt=QUESTION, completions=w.completions, scores=EQUAL)
            ],
            policy=_asked_for_rewards,
            law=_as_asked,
            hyper={"form": "dt", "standardise": False},
            tolerance=1e-4,
            steps=100,
            name="conditioned",
        ),
    ),
}
