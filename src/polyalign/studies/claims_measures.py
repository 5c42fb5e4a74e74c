"""How a declared claim is measured: worlds, feedback, runs, and one expression over their figures.

A declaration names its runs (``a``, ``b``, …), each a method with options; or a list of options
(``grid``), of which the one with the best ``by`` is taken. Its ``measure`` is arithmetic over
``a.reward``, ``b.kl`` and the like, the names of :data:`MEASURES`.
"""

from __future__ import annotations

import ast
import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

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
from polyalign.methods import get
from polyalign.studies.lab import LabRun, exact, train
from polyalign.worlds.bandit import Bandit
from polyalign.worlds.discrete import Discrete, total_variation
from polyalign.worlds.loglinear import LogLinear
from polyalign.worlds.sequences import Sequences

if TYPE_CHECKING:
    from polyalign.studies.claims import Claim

WORLDS: dict[str, Callable[..., Discrete]] = {
    "bandit": Bandit.make,
    "sequences": Sequences.make,
    "loglinear": LogLinear.make,
}


def world_of(options: Mapping[str, Any], seed: int) -> Discrete:
    """The world of a declaration; each seed has rewards and a reference of its own.

    ``length_bias``: labels prefer longer answers by so much log-odds a step.
    """
    given = dict(options)
    kind = given.pop("kind")
    bias = float(given.pop("length_bias", 0.0))
    if kind not in WORLDS:
        raise OptionError(f"There is no world '{kind}'.", nearest(kind, WORLDS))
    if "features" in given:
        given["features"] = tuple(given["features"])
    world = WORLDS[kind](seed=seed, **given)
    if bias:
        from dataclasses import replace

        steps = torch.tensor([float(len(y)) for y in world.completions], dtype=torch.float64)
        apparent = world.reward + bias * steps
        prefer = torch.sigmoid(apparent.unsqueeze(-1) - apparent.unsqueeze(-2))
        world = replace(world, prefer=prefer)
    return world


def records_of(world: Discrete, options: Mapping[str, Any], seed: int) -> list[Record]:
    """Feedback that is sampled from a world: ``n`` records of a ``kind`` (default pairs).

    ``lists``: K answers a row with their gold scores, plus normal noise of ``noise``. ``n`` absent:
    the whole population. ``merge``: equal pairs are one record with their number as its weight.
    """
    given = dict(options)
    kind, n = given.pop("kind", "pairs"), given.pop("n", None)
    k, noise = int(given.pop("k", 4)), float(given.pop("noise", 0.0))
    merge = bool(given.pop("merge", False))
    if given:
        raise OptionError(
            f"Feedback has no option '{next(iter(given))}'.",
            nearest(next(iter(given)), ["kind", "n", "k", "noise", "merge"]),
        )
    match kind:
        case "pairs":
            pairs = world.pairs(n, seed)
            return merged(pairs) if merge else list(pairs)
        case "binary":
            return list(world.binary(n, seed))
        case "scored":
            return list(world.scored(n, seed))
        case "demonstrations":
            return list(world.demonstrations(world.regularised(0.5), n, seed))
        case "lists":
            return list(lists(world, int(n or 100), k, noise, seed))
        case "quadruples" if isinstance(world, LogLinear):
            return list(world.quadruples(n, seed))
    kinds = ["pairs", "binary", "scored", "demonstrations", "lists", "quadruples"]
    raise OptionError(f"A world has no feedback '{kind}'.", nearest(kind, kinds))


def merged(pairs: Sequence[Pair]) -> list[Record]:
    """Each different pair once, weighted by how often it occurs."""
    count = Counter((p.prompt, p.chosen, p.rejected) for p in pairs)
    return [
        Pair(key=f"{x}:{w}>{other}", prompt=x, chosen=w, rejected=other, weight=float(n))
        for (x, w, other), n in count.items()
    ]


def lists(world: Discrete, n: int, k: int, noise: float, seed: int) -> list[Scored]:
    """``n`` prompts with ``k`` different answers from the coverage, scored by gold plus noise."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(world.prompts, (n,), generator=draw)
    out = []
    for i in range(n):
        at = int(x[i])
        law = world.coverage[at]
        picked = torch.multinomial(law, min(k, len(law)), generator=draw)
        score = world.reward[at, picked] + noise * torch.randn(
            len(picked), generator=draw, dtype=torch.float64
        )
        answers = tuple(world.completions[int(j)] for j in picked)
        out.append(Scored(key=f"{i}", prompt=at, completions=answers, scores=tuple(score.tolist())))
    return out


def of_kind(records: Sequence[Record], wanted: type[Record], world: Discrete) -> list[Record]:
    """The records in the kind that a method reads: prompts are the world's own."""
    if wanted is Prompt:
        return list(world.asked())
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


@dataclass(frozen=True)
class Outcome:
    """A finished run, and what can be asked of it by name."""

    world: Discrete
    run: LabRun
    records: Sequence[Record]

    @cached_property
    def law(self) -> Tensor:
        """The trained policy's log-law [X, Y]."""
        return self.world.law(self.run.policy)

    @cached_property
    def shift(self) -> Tensor:
        """Change of log-probability from the start [X, Y]."""
        return self.law - self.world.start

    def seen(self, side: str) -> float:
        """Mean change of log-probability of the feedback's better or worse answers."""
        index = {y: i for i, y in enumerate(self.world.completions)}
        total = weight = 0.0
        for record in of_kind(self.records, Pair, self.world):
            assert isinstance(record, Pair)
            at = float(self.shift[int(record.prompt), index[getattr(record, side)]])
            total, weight = total + record.weight * at, weight + record.weight
        return total / weight


def _lengths(world: Discrete) -> Tensor:
    return torch.tensor(
        [float(len(y)) if isinstance(y, tuple) else 1.0 for y in world.completions],
        dtype=torch.float64,
    )


def _ranking(o: Outcome) -> float:
    """Share of all pairs of answers, weighted by the coverage, that the log-ratios rank as gold."""
    gold = (o.world.reward.unsqueeze(-1) - o.world.reward.unsqueeze(-2)).sign()
    mine = (o.shift.unsqueeze(-1) - o.shift.unsqueeze(-2)).sign()
    mass = o.world.coverage.unsqueeze(-1) * o.world.coverage.unsqueeze(-2) * (gold != 0)
    right = torch.where(mine == 0, 0.5, (mine == gold).double())
    return float((right * mass).sum() / mass.sum())


def _won(o: Outcome) -> float:
    """Probability that its answer is preferred to the start's, by clean preferences."""
    prefer = o.world.prefer.clone()
    diagonal = torch.arange(prefer.shape[-1])
    prefer[:, diagonal, diagonal] = 0.5
    law, start = o.law.exp(), o.world.start.exp()
    return float(torch.einsum("xy,xyz,xz->x", law, prefer, start).mean())


MEASURES: dict[str, Callable[[Outcome], float]] = {
    "reward": lambda o: o.world.point(o.law).reward,
    "gain": lambda o: o.world.point(o.law).reward - o.world.point(o.world.start).reward,
    "kl": lambda o: o.world.point(o.law).kl,
    "wins": _won,
    "entropy": lambda o: float(-(o.law.exp() * o.law).sum(-1).mean()),
    "peak": lambda o: float(o.law.exp().max(-1).values.mean()),
    "chosen": lambda o: o.seen("chosen"),
    "rejected": lambda o: o.seen("rejected"),
    "ranking": _ranking,
    "length": lambda o: float((o.law.exp() * _lengths(o.world)).sum(-1).mean()),
    "start_length": lambda o: float((o.world.start.exp() * _lengths(o.world)).sum(-1).mean()),
    "frontier": lambda o: _frontier(o),
    "best": lambda o: float(o.world.reward.max(-1).values.mean()),
    "seconds": lambda o: o.run.seconds,
    "kept_flips": lambda o: _kept_flips(o),
    "iopo_inputs": lambda o: _agreement(o)[0],
    "iopo_answers": lambda o: _agreement(o)[1],
    "coverage": lambda o: float(
        torch.where(
            o.world.reward < o.world.reward.median(-1, keepdim=True).values, o.law.exp(), 0.0
        )
        .sum(-1)
        .mean()
    ),
    "distance": lambda o: _distance(o),
}
"""What can be asked of a run, by name. Rewards are gold, without the labels' noise; ``chosen``
and ``rejected`` are changes of log-probability in nats; ``frontier``: the best reward that any
policy has at this divergence; ``coverage``: mass on answers below the median reward.
"""


def _frontier(o: Outcome) -> float:
    kl = o.world.point(o.law).kl
    low, high = 1e-3, 1e3
    for _ in range(60):  # divergence falls as beta grows
        beta = math.sqrt(low * high)
        low, high = (
            (beta, high) if o.world.point(o.world.regularised(beta)).kl > kl else (low, beta)
        )
    return o.world.point(o.world.regularised(math.sqrt(low * high))).reward


def _kept_flips(o: Outcome) -> float:
    """Flip rate of the pairs that a selection kept, over that of all pairs."""
    from polyalign.feedback.store import load

    flipped = {r.key: bool(r.meta["flipped"]) for r in o.records}
    kept = [load(data).key for data in o.run.session.hooks.get("stage-1-records") or ()]
    inside = [flipped[key] for key in kept if key in flipped]
    if not inside:
        raise OptionError("The run kept no selection of pairs.", "Ask it of a method that selects.")
    return (sum(inside) / len(inside)) / (sum(flipped.values()) / len(flipped))


def _agreement(o: Outcome) -> tuple[float, float]:
    """Accuracy of choosing the input of an answer, and the answer of an input, over all pairs."""

    def pairs(table: Tensor, gold: Tensor) -> float:
        right = (table.unsqueeze(-1) - table.unsqueeze(-2)).sign()
        truth = (gold.unsqueeze(-1) - gold.unsqueeze(-2)).sign()
        return float((right == truth)[truth != 0].double().mean())

    return pairs(o.shift.T, o.world.reward.T), pairs(o.shift, o.world.reward)


def _distance(o: Outcome) -> float:
    """Total variation to the optimum of the KL-regularised objective at the run's beta."""
    beta = o.run.hyper.get("beta", 0.1)
    return float(total_variation(o.law, o.world.regularised(float(beta))).mean())


def figure(claim: Claim) -> tuple[list[float], dict[str, Any]]:
    """The claim's figure for each seed, and the mean of every measure that it uses."""
    tree = ast.parse(claim.measure, mode="eval").body
    asked = sorted(
        {
            (node.value.id, node.attr)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
    )
    for name, attribute in asked:
        if name not in claim.runs:
            raise OptionError(f"The measure names a run '{name}'.", nearest(name, claim.runs))
        if attribute not in MEASURES:
            raise OptionError(f"A run has no measure '{attribute}'.", nearest(attribute, MEASURES))
    values, parts = [], {f"{n}.{a}": [] for n, a in asked}  # type: ignore[var-annotated]
    for seed in range(claim.seeds):
        world = world_of(claim.world, seed)
        records = records_of(world, claim.feedback, seed)
        done = {n: outcome_of(claim, world, records, claim.runs[n], seed)
                for n in {n for n, _ in asked}}  # fmt: skip
        known = {(n, a): MEASURES[a](done[n]) for n, a in asked}
        values.append(evaluated(tree, known))
        for (n, a), x in known.items():
            parts[f"{n}.{a}"].append(x)
    return values, {name: sum(xs) / len(xs) for name, xs in parts.items()}


def outcome_of(
    claim: Claim, world: Discrete, records: list[Record], run: Mapping[str, Any], seed: int
) -> Outcome:
    """One run of a declaration; of a ``grid`` the options with the largest ``by``."""
    given = dict(run)
    grid = given.pop("grid", None)
    if grid is not None:
        by = MEASURES[given.pop("by")]
        options = [given.get("hyper", {}) | extra for extra in grid]
        tried = [
            outcome_of(claim, world, records, given | {"hyper": hyper}, seed) for hyper in options
        ]
        return max(tried, key=by)
    own = given.get("feedback")
    mine = records if own is None else records_of(world, own, seed)
    hyper = dict(given.get("hyper", {}))
    declaration = get(given["method"])
    wanted = declaration(**hyper).feedback or declaration.feedback
    fitting = of_kind(mine, wanted, world)
    steps = int(given.get("steps", claim.steps))
    batch = int(given.get("batch", 0)) or len(fitting)
    sampled = wanted is Prompt
    if sampled:
        batch = int(given.get("batch", 8 * len(fitting)))
    passes = steps if sampled else max(1.0, steps * batch / len(fitting))
    settings = exact(batch, 1, float(given.get("lr", 0.1)), epochs=float(passes), seed=seed,
                     max_steps=steps)  # fmt: skip
    done = train(given["method"], world, fitting, hyper, settings=settings, steps=steps)
    return Outcome(world, done, mine)


OPERATIONS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluated(node: ast.AST, known: Mapping[tuple[str, str], float]) -> float:
    """Arithmetic over runs' measures; nothing else is understood.

    >>> evaluated(ast.parse("(a.x - b.x) / 2", mode="eval").body, {("a", "x"): 3, ("b", "x"): 1})
    1.0
    """
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Attribute(value=ast.Name(id=name), attr=attribute):
            return known[name, attribute]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATIONS:
            return OPERATIONS[type(op)](evaluated(left, known), evaluated(right, known))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -evaluated(operand, known)
        case ast.Call(func=ast.Name(id="max" | "min" as name), args=args):
            return {"max": max, "min": min}[name](evaluated(arg, known) for arg in args)
    raise OptionError(
        f"The measure '{ast.unparse(node)}' is not understood.",
        "Write arithmetic over a.reward, b.kl and the like, max and min.",
    )
