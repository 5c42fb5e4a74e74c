"""Feedback sampled from a claim's world, by its kind's name, and in the kind that a run reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from polyalign.errors import OptionError, nearest
from polyalign.feedback import AUTOMATIC, convert
from polyalign.feedback.records import (
    Binary,
    Demonstration,
    Pair,
    Prompt,
    Record,
    Scored,
    kind_name,
)
from polyalign.studies.claims_worlds import Desk, asked, called, second_reward
from polyalign.worlds.discrete import Discrete
from polyalign.worlds.loglinear import LogLinear
from polyalign.worlds.tiny_lm import TinyLm

FEEDBACK: dict[str, Callable[..., Sequence[Record]]] = {}
"""Kinds of feedback that a declaration names; ``n`` absent is the whole population."""


def _offered(kind: Callable[..., Sequence[Record]]) -> Callable[..., Sequence[Record]]:
    FEEDBACK[kind.__name__] = kind
    return kind


def records_of(desk: Desk, options: Mapping[str, Any], seed: int) -> list[Record]:
    """The feedback of a declaration. Raises :class:`OptionError` for an unknown kind or option."""
    given = dict(options)
    kind = given.pop("kind", "pairs")
    if kind not in FEEDBACK:
        raise OptionError(f"A world has no feedback '{kind}'.", nearest(kind, FEEDBACK))
    made = called(FEEDBACK[kind], f"Feedback of kind '{kind}'", given, desk=desk, seed=seed)
    return list(made)


@_offered
def pairs(
    *,
    desk: Desk,
    seed: int,
    n: int | None = None,
    merge: bool = False,
    level: Literal["all", "above", "below"] = "all",
) -> Sequence[Record]:
    """Labelled pairs. ``merge``: equal ones are one record with their number as its weight.
    ``level``: of answers better or worse than the reference's mean only.
    """
    world = desk.world
    if isinstance(world, TinyLm):
        return world.pairs(n or 256, seed)
    if level != "all":
        mean = (world.start.exp() * world.reward).sum(-1, keepdim=True)
        kept = (world.reward > mean) == (level == "above")
        law = torch.where(kept, world.coverage, 0.0)
        world = replace(world, coverage=law / law.sum(-1, keepdim=True))
    made = world.pairs(n, seed)
    return _merged(made) if merge else made


def _merged(made: Sequence[Pair]) -> list[Record]:
    """Each different pair once, weighted by how often it occurs."""
    count = Counter((p.prompt, p.chosen, p.rejected) for p in made)
    return [
        Pair(key=f"{x}:{w}>{other}", prompt=x, chosen=w, rejected=other, weight=float(n))
        for (x, w, other), n in count.items()
    ]


@_offered
def graded(
    *, desk: Desk, seed: int, n: int, noise: float = 0.0, judged: bool = False
) -> Sequence[Record]:
    """Pairs with scores of both answers and a ``strength``: the gold reward plus noise, and the
    probability that follows. ``judged``: the label is the more probable one, not a draw.
    """
    luck = torch.Generator().manual_seed(seed + 32452843)
    made = []
    for pair in desk.world.pairs(n, seed):
        error = noise * torch.randn(2, generator=luck, dtype=torch.float64)
        won = pair.fields["score_chosen"] + float(error[0])
        lost = pair.fields["score_rejected"] + float(error[1])
        if judged and lost > won:
            pair, won, lost = replace(pair, chosen=pair.rejected, rejected=pair.chosen), lost, won
        fields = {
            "score_chosen": won,
            "score_rejected": lost,
            "strength": float(torch.sigmoid(torch.tensor(won - lost))),
        }
        made.append(replace(pair, fields=fields))
    return made


@_offered
def ordered(*, desk: Desk, seed: int, n: int) -> Sequence[Record]:
    """Pairs with their scores, the higher one preferred, of a desk that can be asked for scores."""
    prompt = asked(desk).asks[0]
    made = graded(desk=desk, seed=seed, n=n, judged=True)
    return [replace(pair, prompt=prompt) for pair in made if isinstance(pair, Pair)]


@_offered
def margined(*, desk: Desk, seed: int, n: int | None = None) -> Sequence[Record]:
    """Pairs labelled by the first reward, with the second one's values as ``m_w`` and ``m_l``."""
    second = second_reward(desk)
    return [
        replace(
            p,
            fields={
                "m_w": float(second[p.prompt, desk.world.index(p.chosen)]),
                "m_l": float(second[p.prompt, desk.world.index(p.rejected)]),
            },
        )
        for p in desk.world.pairs(n, seed)
    ]


@_offered
def dimensions(*, desk: Desk, seed: int, n: int | None = None) -> Sequence[Record]:
    """``n`` pairs labelled by the first reward and as many by the second; the column
    ``dimension`` says which.
    """
    from polyalign.worlds.discrete import bradley_terry

    second = second_reward(desk)
    other = replace(desk.world, reward=second, prefer=bradley_terry(second))
    return [
        replace(p, key=f"{name}:{p.key}", meta={**p.meta, "dimension": name})
        for name, world in (("first", desk.world), ("second", other))
        for p in world.pairs(n, seed)
    ]


@_offered
def golden(*, desk: Desk, seed: int, n: int, best_of: int = 4) -> Sequence[Record]:
    """Pairs with an answer to imitate beside: the best of so many from the coverage."""
    return _beside(desk.world, "gold", n, seed, best_of, desk.world.coverage)


@_offered
def sourced(*, desk: Desk, seed: int, n: int, best: int = 8, best_of: int = 4) -> Sequence[Record]:
    """Pairs of the reference's own answers, with another model's best of so many beside: that
    model answers with the ``best`` highest rewards alone.
    """
    law = torch.zeros_like(desk.world.coverage)
    law.scatter_(-1, desk.world.reward.topk(best, -1).indices, 1 / best)
    return _beside(desk.world, "source_chosen", n, seed, best_of, law)


def _beside(
    world: Discrete, role: str, n: int, seed: int, best_of: int, law: Tensor
) -> list[Record]:
    luck = torch.Generator().manual_seed(seed + 49979687)
    made: list[Record] = []
    for pair in world.pairs(n, seed):
        drawn = torch.multinomial(law[pair.prompt], best_of, replacement=True, generator=luck)
        best = int(drawn[world.reward[pair.prompt, drawn].argmax()])
        made.append(replace(pair, others={role: world.completions[best]}))
    return made


@_offered
def repaired(*, desk: Desk, seed: int, n: int, wrong: int = 2) -> Sequence[Record]:
    """Pairs of a spoilt best answer, ``wrong`` tokens of it replaced, and the same with one token
    mended: winner and loser share all but one token.
    """
    world, draw = desk.world, torch.Generator().manual_seed(seed)
    made: list[Record] = []
    for i in range(n):
        x = int(torch.randint(world.prompts, (1,), generator=draw))
        best = list(world.completions[int(world.reward[x].argmax())])
        places = torch.randperm(len(best), generator=draw)[:wrong].tolist()
        shift = torch.randint(1, world.vocabulary, (wrong,), generator=draw).tolist()
        spoilt = list(best)
        for place, by in zip(places, shift, strict=True):
            spoilt[place] = (best[place] + by) % world.vocabulary
        mended = list(spoilt)
        mended[places[0]] = best[places[0]]
        made.append(Pair(key=f"{i}", prompt=x, chosen=tuple(mended), rejected=tuple(spoilt)))
    return made


@_offered
def traced(*, desk: Desk, seed: int, n: int) -> Sequence[Record]:
    """Pairs of answers after a trace that was drawn (``trace`` 1) and as many after an empty one.

    The first token is the trace, 0 the empty one; the last token is the answer, which alone the
    label is about.
    """
    world, draw = desk.world, torch.Generator().manual_seed(seed + 7)
    made: list[Record] = []
    for pair in world.pairs(n, seed):
        made.append(replace(pair, key=f"t{pair.key}", fields={"trace": 1.0}))
        first, second = ((0, y[-1]) for y in (pair.chosen, pair.rejected))
        at = [float(world.reward[pair.prompt, world.index(y)]) for y in (first, second)]
        wins = float(torch.rand(1, generator=draw)) < float(
            torch.sigmoid(torch.tensor(at[0] - at[1]))
        )
        best, worst = (first, second) if wins else (second, first)
        if best != worst:
            made.append(
                Pair(key=f"e{pair.key}", prompt=pair.prompt, chosen=best, rejected=worst,
                     fields={"trace": 0.0})
            )  # fmt: skip
    return made


@_offered
def binary(*, desk: Desk, seed: int, n: int | None = None) -> Sequence[Record]:
    """Thumbs."""
    return desk.world.binary(n, seed)


@_offered
def scored(*, desk: Desk, seed: int, n: int | None = None) -> Sequence[Record]:
    """Single answers with their gold reward."""
    if isinstance(desk.world, TinyLm):
        return desk.world.lists(n or 96, seed, 1)
    return desk.world.scored(n, seed)


@_offered
def demonstrations(
    *, desk: Desk, seed: int, n: int | None = None, beta: float = 0.5
) -> Sequence[Record]:
    """Answers from the optimum at a strength."""
    return desk.world.demonstrations(desk.world.regularised(beta), n, seed)


@_offered
def quadruples(*, desk: Desk, seed: int, n: int | None = None) -> Sequence[Record]:
    """Two instructions and two answers."""
    if not isinstance(desk.world, LogLinear):
        raise OptionError("Only the world 'loglinear' has quadruples.", "Declare that world.")
    return desk.world.quadruples(n, seed)


@_offered
def lists(
    *, desk: Desk, seed: int, n: int | None = None, k: int = 4, noise: float = 0.0
) -> Sequence[Record]:
    """``n`` prompts with ``k`` different answers from the coverage, scored by gold plus noise."""
    world = desk.world
    if isinstance(world, TinyLm):
        return world.lists(n or 96, seed, k)
    if n is None:
        return world.lists()
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(world.prompts, (n,), generator=draw)
    made = []
    for i in range(n):
        at = int(x[i])
        law = world.coverage[at]
        picked = torch.multinomial(law, min(k, len(law)), generator=draw)
        score = world.reward[at, picked] + noise * torch.randn(
            len(picked), generator=draw, dtype=torch.float64
        )
        answers = tuple(world.completions[int(j)] for j in picked)
        made.append(
            Scored(key=f"{i}", prompt=at, completions=answers, scores=tuple(score.tolist()))
        )
    return made


def of_kind(records: Sequence[Record], wanted: type[Record], desk: Desk) -> list[Record]:
    """The records in the kind that a method reads: prompts are the world's own."""
    if wanted is Prompt:
        return list(desk.world.asked())
    kind = type(records[0])
    if kind is wanted:
        return list(records)
    if (kind, wanted) == (Scored, Pair):
        return list(convert(records, Pair, rule="best-worst"))
    if (kind, wanted) == (Scored, Demonstration):
        return list(convert(records, Demonstration))
    if (kind, wanted) == (Scored, Binary):
        scores = [s for r in records if isinstance(r, Scored) for s in r.scores]
        return list(convert(records, Binary, threshold=sum(scores) / len(scores)))
    if (kind, wanted) in AUTOMATIC:
        return list(convert(records, wanted))
    raise OptionError(
        f"{kind_name(wanted)} cannot be made of {kind_name(kind)}.",
        "Declare feedback of another kind for this run.",
    )
