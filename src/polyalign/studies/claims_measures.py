"""What a declared claim can ask of a finished run, by name.

Rewards are gold, without the labels' noise; divergences in nats. Each function is one measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from polyalign.errors import OptionError
from polyalign.feedback.records import Pair, Record
from polyalign.loops import epochs
from polyalign.protocols import Policy, Sampling
from polyalign.studies.claims_feedback import of_kind
from polyalign.studies.claims_worlds import Desk, asked, second_reward
from polyalign.studies.lab import LabRun
from polyalign.types import Rows
from polyalign.worlds.discrete import kl_divergence, tilt, total_variation


@dataclass(frozen=True)
class Outcome:
    """A finished run on a desk, from the records that it was given."""

    desk: Desk
    run: LabRun
    records: Sequence[Record]

    @property
    def world(self) -> Any:
        """The desk's world."""
        return self.desk.world

    @cached_property
    def law(self) -> Tensor:
        """The trained policy's log-law [X, Y]."""
        law: Tensor = self.world.law(self.run.policy)
        return law

    @cached_property
    def shift(self) -> Tensor:
        """Change of log-probability from the start [X, Y]."""
        return self.law - self.world.start

    def seen(self, side: str) -> float:
        """Mean change of log-probability of the feedback's better or worse answers."""
        index = {y: i for i, y in enumerate(self.world.completions)}
        total = weight = 0.0
        for record in of_kind(self.records, Pair, self.desk):
            assert isinstance(record, Pair)
            at = float(self.shift[int(record.prompt), index[getattr(record, side)]])
            total, weight = total + record.weight * at, weight + record.weight
        return total / weight


Measure = Callable[[Outcome], float]
MEASURES: dict[str, Measure] = {}
"""What can be asked of a run, by name."""


def _offered(measure: Measure) -> Measure:
    MEASURES[measure.__name__] = measure
    return measure


# What it does on the whole.


@_offered
def reward(o: Outcome) -> float:
    """Expected gold reward."""
    return float((o.law.exp() * o.world.reward).sum(-1).mean())


@_offered
def second(o: Outcome) -> float:
    """Expected second reward."""
    return float((o.law.exp() * second_reward(o.desk)).sum(-1).mean())


@_offered
def gain(o: Outcome) -> float:
    """Expected gold reward above the start's."""
    return reward(o) - float((o.world.start.exp() * o.world.reward).sum(-1).mean())


@_offered
def best(o: Outcome) -> float:
    """The largest reward that any policy has."""
    return float(o.world.reward.max(-1).values.mean())


@_offered
def half(o: Outcome) -> float:
    """How near the gain is to half of what is possible, at most 0."""
    start = reward(o) - gain(o)
    return -abs(gain(o) / (best(o) - start) - 0.5)


@_offered
def kl(o: Outcome) -> float:
    """Divergence from the start."""
    return float(kl_divergence(o.law, o.world.start).mean())


@_offered
def wins(o: Outcome) -> float:
    """Probability that its answer is preferred to the start's, by clean preferences."""
    prefer = o.world.prefer.clone()
    diagonal = torch.arange(prefer.shape[-1])
    prefer[:, diagonal, diagonal] = 0.5
    return float(torch.einsum("xy,xyz,xz->x", o.law.exp(), prefer, o.world.start.exp()).mean())


@_offered
def frontier(o: Outcome) -> float:
    """The best reward that any policy has at this divergence."""
    low, high = 1e-3, 1e3
    for _ in range(60):  # divergence falls as beta grows
        beta = math.sqrt(low * high)
        further = o.world.point(o.world.regularised(beta)).kl > kl(o)
        low, high = (beta, high) if further else (low, beta)
    best_there: float = o.world.point(o.world.regularised(math.sqrt(low * high))).reward
    return best_there


@_offered
def distance(o: Outcome) -> float:
    """Total variation to the optimum of the KL-regularised objective at the run's beta."""
    beta = float(o.run.hyper.get("beta", 0.1))
    return float(total_variation(o.law, o.world.regularised(beta)).mean())


@_offered
def attained(o: Outcome) -> float:
    """Share of the possible gain of ``w r_1 + (1-w) r_2 - beta KL`` at the run's own w and beta."""
    other = second_reward(o.desk)
    first, beta = float(o.run.hyper["w"][0]), float(o.run.hyper["beta"])
    both = first * o.world.reward + (1 - first) * other

    def worth(law: Tensor) -> float:
        value = (law.exp() * both).sum(-1) - beta * kl_divergence(law, o.world.start)
        return float(value.mean())

    start = worth(o.world.start)
    return (worth(o.law) - start) / (worth(tilt(o.world.start, both / beta)) - start)


@_offered
def seconds(o: Outcome) -> float:
    """Seconds of training."""
    return o.run.seconds


# Where its mass lies.


@_offered
def entropy(o: Outcome) -> float:
    """Entropy of its answers."""
    return float(-(o.law.exp() * o.law).sum(-1).mean())


@_offered
def peak(o: Outcome) -> float:
    """The largest probability."""
    return float(o.law.exp().max(-1).values.mean())


@_offered
def coverage(o: Outcome) -> float:
    """Mass on answers below the median reward."""
    middle = o.world.reward.median(-1, keepdim=True).values
    return float(torch.where(o.world.reward < middle, o.law.exp(), 0.0).sum(-1).mean())


@_offered
def floor(o: Outcome) -> float:
    """The smallest share of its start's probability that an answer keeps."""
    return float(o.shift.exp().min(-1).values.mean())


@_offered
def length(o: Outcome) -> float:
    """Mean length of its answers."""
    return float((o.law.exp() * o.world.lengths).sum(-1).mean())


@_offered
def start_length(o: Outcome) -> float:
    """Mean length of the start's answers."""
    return float((o.world.start.exp() * o.world.lengths).sum(-1).mean())


@_offered
def wrong_length(o: Outcome) -> float:
    """Mean length of its answers of reward below a half."""
    mass = torch.where(o.world.reward < 0.5, o.law.exp(), 0.0)
    return float(((mass * o.world.lengths).sum(-1) / mass.sum(-1)).mean())


# What became of the feedback.


@_offered
def chosen(o: Outcome) -> float:
    """Change of log-probability of the feedback's better answers."""
    return o.seen("chosen")


@_offered
def rejected(o: Outcome) -> float:
    """Change of log-probability of the feedback's worse answers."""
    return o.seen("rejected")


@_offered
def ranking(o: Outcome) -> float:
    """Share of all pairs of answers, weighted by the coverage, that the log-ratios rank as gold."""
    gold = (o.world.reward.unsqueeze(-1) - o.world.reward.unsqueeze(-2)).sign()
    mine = (o.shift.unsqueeze(-1) - o.shift.unsqueeze(-2)).sign()
    mass = o.world.coverage.unsqueeze(-1) * o.world.coverage.unsqueeze(-2) * (gold != 0)
    right = torch.where(mine == 0, 0.5, (mine == gold).double())
    return float((right * mass).sum() / mass.sum())


@_offered
def flips(o: Outcome) -> float:
    """Of the feedback's pairs that the start ranks wrongly, the share that it ranks rightly."""
    index = {y: i for i, y in enumerate(o.world.completions)}
    wrong = right = 0
    for record in of_kind(o.records, Pair, o.desk):
        assert isinstance(record, Pair)
        x, w, l = int(record.prompt), index[record.chosen], index[record.rejected]  # noqa: E741
        if o.world.start[x, w] < o.world.start[x, l]:
            wrong += 1
            right += bool(o.law[x, w] > o.law[x, l])
    return right / wrong


@_offered
def fit(o: Outcome) -> float:
    """Minus DPO's loss over all pairs that there could be, at the run's beta: held-out fit."""
    z = float(o.run.hyper.get("beta", 0.1)) * (o.shift.unsqueeze(-1) - o.shift.unsqueeze(-2))
    mu = o.world.coverage
    mass = mu.unsqueeze(-1) * mu.unsqueeze(-2) * o.world.observed
    mass = mass - torch.diag_embed(torch.diagonal(mass, dim1=-2, dim2=-1))
    return float((mass * torch.nn.functional.logsigmoid(z)).sum() / mass.sum())


@_offered
def kept_flips(o: Outcome) -> float:
    """Flip rate of the pairs that a selection kept, over that of all pairs."""
    from polyalign.feedback.store import load

    flipped = {r.key: bool(r.meta["flipped"]) for r in o.records}
    kept = [load(data).key for data in o.run.session.hooks.get("stage-1-records") or ()]
    inside = [flipped[key] for key in kept if key in flipped]
    if not inside:
        raise OptionError("The run kept no selection of pairs.", "Ask it of a method that selects.")
    return (sum(inside) / len(inside)) / (sum(flipped.values()) / len(flipped))


def _agreement(table: Tensor, gold: Tensor) -> float:
    mine = (table.unsqueeze(-1) - table.unsqueeze(-2)).sign()
    truth = (gold.unsqueeze(-1) - gold.unsqueeze(-2)).sign()
    return float((mine == truth)[truth != 0].double().mean())


@_offered
def iopo_inputs(o: Outcome) -> float:
    """Accuracy of choosing the input of an answer, over all pairs of inputs."""
    return _agreement(o.shift.T, o.world.reward.T)


@_offered
def iopo_answers(o: Outcome) -> float:
    """Accuracy of choosing the answer of an input, over all pairs of answers."""
    return _agreement(o.shift, o.world.reward)


@_offered
def scatter(o: Outcome) -> float:
    """Variance of the gradient from one record to the next, summed over all parameters."""
    return o.run.scatter()


# In the tiny language, from samples.

SAMPLES = 32


def _asked(o: Outcome, prompts: Sequence[Any]) -> list[Any]:
    """Prompts as the trained policy is to be asked, with what data steps wrote into them."""
    found = epochs.condition(o.run.session)
    return list(prompts) if found is None else [found.ask(prompt) for prompt in prompts]


@_offered
def sampled(o: Outcome) -> float:
    """Mean gold reward of sampled answers, asked as the trained policy is to be asked."""
    policy = o.run.policy
    plain = [p.prompt for p in o.world.asked()]
    how = Sampling(max_steps=64)
    contexts = _asked(o, plain)
    drawn = policy.sample(contexts, SAMPLES, how, list(range(SAMPLES * len(plain))))
    prompts = [prompt for prompt in plain for _ in range(SAMPLES)]
    return sum(map(o.world.reward, prompts, drawn.payloads)) / len(prompts)


@_offered
def asked_reward(o: Outcome) -> float:
    """Expected gold reward, asked as the trained policy is to be asked, of a world with scores."""
    (prompt,) = _asked(o, asked(o.desk).asks[:1])
    rows = [o.run.policy.encode(prompt, y) for y in o.world.completions]
    with torch.no_grad():
        law = o.run.policy.score(Rows.collate(rows)).logp.double().sum(-1).exp()
    return float((law * o.world.reward[0]).sum())


@_offered
def good_rejected(o: Outcome) -> float:
    """Change of log-probability of rejected answers that are good themselves, asked as is due."""
    session = o.run.session
    least = asked(o.desk).good
    good = [r for r in o.records if isinstance(r, Pair) and r.fields["score_rejected"] >= least]
    if not good:
        raise OptionError("No rejected answer is good.", "Declare more pairs.")

    def total(policy: Policy, prompts: Sequence[Any]) -> Tensor:
        rows = [policy.encode(x, r.rejected) for x, r in zip(prompts, good, strict=True)]
        with torch.no_grad():
            return policy.score(Rows.collate(rows)).logp.double().sum(-1)

    plain = [r.prompt for r in good]
    now = total(o.run.policy, _asked(o, plain))
    return float((now - total(session.start, plain)).mean())
