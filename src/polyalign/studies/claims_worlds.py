"""The worlds of declared claims: the exact worlds, with what a claim needs of them beside.

Each function here makes a world by its kind's name; each seed has rewards and a reference of its
own. Axes: X prompts, Y completions, F features.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from polyalign.errors import OptionError, nearest
from polyalign.feedback.conditioning import Goals
from polyalign.policies.tabular import BilinearPolicy, NamedFeatures
from polyalign.protocols import Policy
from polyalign.studies.lab import policy_for
from polyalign.worlds.bandit import Bandit
from polyalign.worlds.discrete import Discrete, bradley_terry
from polyalign.worlds.loglinear import LogLinear
from polyalign.worlds.sequences import Sequences
from polyalign.worlds.tiny_lm import TinyLm


@dataclass(frozen=True)
class Desk:
    """What the runs of a declaration share.

    ``second`` [X, Y]: another gold reward. ``features`` [Y, F]: all that the policy can tell
    answers apart by, in place of a table.
    """

    world: Any
    second: Tensor | None = None
    features: Tensor | None = None

    def policy(self) -> Policy:
        """The policy that every run starts from."""
        if self.features is None:
            return policy_for(self.world)
        prompts, size = self.world.prompts, self.features.shape[1]
        weight = torch.zeros(1, size, dtype=torch.float64)
        ones = torch.ones(prompts, 1, dtype=torch.float64)
        return BilinearPolicy(weight, ones, self.features, self.world.start)


@dataclass(frozen=True)
class Asked(Desk):
    """A desk with one prompt that can be asked for a score.

    ``asks`` [P] are texts, the prompt and then what asks for a score, with ``goals`` [P, D], what
    the policy knows of each; ``good`` is the reward from which an answer counts as good.
    """

    asks: tuple[str, ...] = ()
    goals: Tensor | None = None
    good: float = 0.0

    def policy(self) -> Policy:
        """The policy that every run starts from: products of what it knows of both."""
        assert self.goals is not None
        assert self.features is not None
        weight = torch.zeros(self.goals.shape[1], self.features.shape[1], dtype=torch.float64)
        return NamedFeatures(weight, self.goals, self.features, self.asks)


def second_reward(desk: Desk) -> Tensor:
    """The second reward [X, Y] of a world; OptionError where there is one only."""
    if desk.second is None:
        raise OptionError(
            "This world has one reward, and the claim reads two.",
            "Declare the world with a correlation.",
        )
    return desk.second


def asked(desk: Desk) -> Asked:
    """A desk that can be asked for scores; OptionError where it cannot."""
    if not isinstance(desk, Asked):
        raise OptionError(
            "This world cannot be asked for a score, and the claim reads such answers.",
            "Declare the world goals.",
        )
    return desk


Maker = Callable[..., Desk]
WORLDS: dict[str, Maker] = {}
"""Worlds by the kind that a declaration names."""


def _offered(maker: Maker) -> Maker:
    WORLDS[maker.__name__] = maker
    return maker


def world_of(options: Mapping[str, Any], seed: int) -> Desk:
    """The world of a declaration. Raises :class:`OptionError` for an unknown kind or option."""
    given = dict(options)
    kind = given.pop("kind")
    if kind not in WORLDS:
        raise OptionError(f"There is no world '{kind}'.", nearest(kind, WORLDS))
    return called(WORLDS[kind], f"The world '{kind}'", given, seed=seed)


def called(function: Callable[..., Any], what: str, given: Mapping[str, Any], **more: Any) -> Any:
    """A function with declared options; one that it does not take is told with the nearest."""
    known = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in more
    ]
    for name in given:
        if name not in known:
            raise OptionError(f"{what} has no option '{name}'.", nearest(name, known))
    return function(**more, **given)


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@_offered
def bandit(
    *,
    seed: int,
    prompts: int = 2,
    responses: int = 8,
    noise: float = 0.0,
    spread: float = 1.0,
    reference: Literal["random", "uniform"] = "random",
    preferences: Literal["bradley-terry", "intransitive", "deterministic"] = "bradley-terry",
    coverage: Literal["reference", "uniform"] = "reference",
    sharpness: float = 1.0,
    correlation: float | None = None,
    misled: float = 0.0,
    told: float = 0.7,
) -> Desk:
    """A bandit. ``sharpness`` stretches the reference's logits. ``correlation``: a second gold
    reward, so much like the first. ``misled``: on so large a share of the prompts the reference is
    tilted against the reward by ``told``, on the others by as much towards it.
    """
    world: Discrete = Bandit.make(
        prompts,
        responses,
        seed=seed,
        noise=noise,
        spread=spread,
        reference=reference,
        preferences=preferences,
        coverage=coverage,
    )
    start = sharpness * world.start
    if misled:
        against = torch.arange(prompts) < round(misled * prompts)
        start = start + torch.where(against, -told, told).unsqueeze(-1) * world.reward
    start = start.log_softmax(-1)
    world = replace(
        world, start=start, coverage=start.exp() if coverage == "reference" else world.coverage
    )
    if correlation is None:
        return Desk(world)
    free = spread * _normal(seed + 7919, prompts, responses)
    return Desk(world, correlation * world.reward + (1 - correlation**2) ** 0.5 * free)


@_offered
def features(
    *,
    seed: int,
    responses: int = 64,
    seen: int = 6,
    unseen: int = 0,
    junk: bool = False,
    gap: float = 3.0,
    spread: float = 1.0,
) -> Desk:
    """One prompt whose answers the policy tells apart by ``seen`` features; rewards depend on
    ``unseen`` ones too. ``junk``: every second answer has a reference log-probability lower by
    ``gap`` and features that mean the opposite. Feedback is about all answers alike.
    """
    every = _normal(seed, responses, seen + unseen)
    weight = _normal(seed + 104729, seen + unseen) / (seen + unseen) ** 0.5
    sign = torch.ones(responses, dtype=torch.float64)
    low = torch.zeros(responses, dtype=torch.float64)
    if junk:
        sign[1::2], low[1::2] = -1.0, -gap
    reward = (spread * sign * (every @ weight)).unsqueeze(0)
    start = low.log_softmax(-1).unsqueeze(0)
    uniform = torch.full_like(start, 1 / responses)
    world = Bandit(start, reward, bradley_terry(reward), uniform, tuple(range(responses)), 0.0)
    return Desk(world, features=every[:, :seen])


@_offered
def line(*, seed: int, responses: int = 50) -> Desk:
    """Answers on a line with a high narrow and a lower second peak of reward, which a policy with
    two features (a discretised Gaussian) cannot both hold; seeds move the peaks a little.

    ``r = 2 exp(-(x-a)^2/0.3) + 1.8 exp(-(x-b)^2/0.3)``, a near 2, b near -2, a uniform reference.
    """
    x = torch.linspace(-4, 4, responses, dtype=torch.float64)
    a, b = (torch.tensor([2.0, -2.0]) + 0.2 * _normal(seed, 2)).tolist()
    reward = 2 * (-((x - a) ** 2) / 0.3).exp() + 1.8 * (-((x - b) ** 2) / 0.3).exp()
    reward = reward.unsqueeze(0)
    start = torch.zeros_like(reward).log_softmax(-1)
    places = tuple(range(responses))
    world = Bandit(start, reward, bradley_terry(reward), start.exp(), places, 0.0)
    return Desk(world, features=torch.stack([x, x**2], -1))


@_offered
def goals(*, seed: int, responses: int = 16, seen: int = 4) -> Desk:
    """One prompt, plain or asked for a score, with answers of scores 10, 9.7, 9.4, 9.2 and others
    from 1 to 8.5; the policy has ``seen`` features of an answer, the first of them its own score,
    and their products with the score asked for.
    """
    good = torch.tensor([10.0, 9.7, 9.4, 9.2], dtype=torch.float64)
    made = torch.Generator().manual_seed(seed + 611953)
    other = 1 + 7.5 * torch.rand(responses - len(good), generator=made, dtype=torch.float64)
    score = torch.cat([good, other])
    reward = score.unsqueeze(0)
    start = torch.zeros_like(reward).log_softmax(-1)
    places = tuple(range(responses))
    world = Bandit(start, reward, bradley_terry(reward), start.exp(), places, 0.0)
    asked = Goals(1.0, 10.0, 10.0)
    texts = tuple(asked.ask(QUESTION, value) for value in score.tolist())
    known = torch.stack([torch.ones_like(score), (score - 5.5) / 4.5], -1)
    known = torch.cat([torch.tensor([[1.0, 0.0]], dtype=torch.float64), known])
    features = _normal(seed, responses, seen)
    features[:, 0] = (score - 5.5) / 4.5
    return Asked(world, features=features, asks=(QUESTION, *texts), goals=known, good=9.0)


QUESTION = "How good?"
"""The prompt that can be asked for a score."""


@_offered
def sequences(
    *,
    seed: int,
    prompts: int = 1,
    vocabulary: int = 3,
    length: int = 3,
    eos: int | None = None,
    noise: float = 0.0,
    spread: float = 1.0,
    sharpness: float = 1.0,
    length_bias: float = 0.0,
    reward: Literal["random", "target", "first", "last"] = "random",
) -> Desk:
    """Sequences. ``length_bias``: labels prefer longer answers by so much log-odds a step.

    ``reward``: of every answer its own; how many tokens are those of a target; 1 where the first
    token is the prompt's right one (whatever the length), else 0; or the last token's own.
    """
    world: Discrete = Sequences.make(
        prompts,
        vocabulary,
        length,
        eos=eos,
        seed=seed,
        noise=noise,
        spread=spread,
        sharpness=sharpness,
    )
    if reward != "random":
        draw = torch.Generator().manual_seed(seed + 15485863)
        low = 0 if eos is None else 1
        target = torch.randint(low, vocabulary, (prompts, length), generator=draw)
        worth = spread * _normal(seed + 7919, prompts, vocabulary)
        table = [
            [_worth(reward, y, target[x].tolist(), worth[x].tolist(), spread)
             for y in world.completions]
            for x in range(prompts)
        ]  # fmt: skip
        gold = torch.tensor(table, dtype=torch.float64)
        world = replace(world, reward=gold, prefer=bradley_terry(gold))
    if length_bias:
        apparent = world.reward + length_bias * world.lengths
        world = replace(world, prefer=bradley_terry(apparent))
    return Desk(world)


def _worth(
    kind: str, answer: tuple[int, ...], target: list[int], worth: list[float], spread: float
) -> float:
    if kind == "target":
        return spread * sum(a == b for a, b in zip(answer, target, strict=False))
    return float(answer[0] == target[0]) if kind == "first" else worth[answer[-1]]


@_offered
def loglinear(
    *,
    seed: int,
    instructions: int = 8,
    responses: int = 20,
    features: tuple[int, int] = (4, 5),
    spread: float = 1.0,
    noise: float = 0.0,
) -> Desk:
    """Answers that fit instructions by their features."""
    made = LogLinear.make(
        instructions,
        responses,
        features=tuple(features),  # type: ignore[arg-type]  # a list in YAML
        seed=seed,
        spread=spread,
        noise=noise,
    )
    return Desk(made)


@_offered
def tiny_lm(*, seed: int, noise: float = 0.0, length_pay: float = 0.0, scale: float = 4.0) -> Desk:
    """The tiny language; seeds differ by feedback and training, not by the model."""
    return Desk(TinyLm.make(noise, length_pay, scale))
