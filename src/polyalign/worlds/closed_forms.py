"""Population optima that theory knows, as log-laws [X, Y] of a discrete world.

Most follow one pattern. Labels are Bradley-Terry, ``P(y > y') = sig(r(y) - r(y'))``, every pair
occurs, and a loss is logistic in a difference ``g(y) - g(y')`` of some reward of the policy. The
logistic loss is strictly proper, so over the population ``g(y) = r(y) + c(x)``: the optimum is
the law with this reward, and the one free number ``c(x)`` of a prompt is fixed by the law summing
to one (:func:`normalised`). Where a margin or an anchor breaks the pattern, two answers a prompt
leave a single unknown, whose equation is solved in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from polyalign.worlds.discrete import Discrete, tilt

FAR = 1e3
"""Reach of a bisection, in nats."""


def bisected(rising: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Where a rising function crosses 0, elementwise over the shape of ``like``.

    >>> bisected(lambda x: x**3 - 8, torch.zeros(1, dtype=torch.float64)).item()
    2.0
    """
    low, high = torch.full_like(like, -FAR), torch.full_like(like, FAR)
    for _ in range(64):
        middle = (low + high) / 2
        below = rising(middle) < 0
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def normalised(law_of: Callable[[Tensor], Tensor], reward: Tensor) -> Tensor:
    """The log-law ``law_of(reward + c)`` with c(x) such that it sums to one, [X, Y].

    ``law_of`` gives log pi(y) of the reward that y should have, rising, infinite out of range.
    """
    c = bisected(lambda c: law_of(reward + c).logsumexp(-1, keepdim=True), reward[..., :1])
    return law_of(reward + c).log_softmax(-1)


def per_token(world: Discrete, beta: float, *, reference: bool = True) -> Tensor:
    """Reward ``beta log(pi/ref)/n`` (or ``beta log(pi)/n``): pi = ref exp(n (r + c)/beta).

    c is no longer a prompt's constant that cancels: it tilts the law by length, and normalisation
    fixes it. At equal lengths n it is ref exp(n r/beta)/Z (arXiv 2405.14734, 2411.15124).
    """
    base = world.start if reference else torch.zeros_like(world.start)
    return normalised(lambda v: base + world.lengths * v / beta, world.reward)


def odds(world: Discrete, beta: float) -> Tensor:
    """Reward ``beta logit(pi^(1/n))``: pi = sig((r + c)/beta)^n (arXiv 2502.01237)."""
    return normalised(lambda v: world.lengths * logsigmoid(v / beta), world.reward)


def inverse_power(value: Tensor, alpha: float) -> Tensor:
    """The t with ``(1 - exp(-alpha t))/alpha = value``; alpha 0 gives ``value`` itself."""
    if alpha == 0:
        return value
    inside = 1 - alpha * value
    # Out of range the reward is larger (alpha > 0) or smaller than any t reaches.
    beyond = torch.full_like(value, torch.inf if alpha > 0 else -torch.inf)
    return torch.where(inside > 0, -inside.clamp(min=1e-300).log() / alpha, beyond)


def powered(world: Discrete, beta: float, alpha: float) -> Tensor:
    """Reward ``beta (1 - exp(-alpha a))/alpha``, a = log(pi)/n, no margin (arXiv 2501.03884)."""
    return normalised(
        lambda v: world.lengths * inverse_power(v / beta, alpha).clamp(-FAR, FAR), world.reward
    )


Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


def divergence(world: Discrete, beta: float, name: Divergence, alpha: float = 0.5) -> Tensor:
    """What maximises E[r] - beta D_f(pi || ref): pi = ref (f')^-1((r - lambda)/beta).

    The multiplier lambda is fixed by normalisation (arXiv 2309.16240, theorem 1); rewards
    ``f'(u)``: log u, -1/u, log(2u/(1+u)), (1 - u^-alpha)/alpha.
    """

    def log_ratio(v: Tensor) -> Tensor:
        match name:
            case "reverse_kl":
                return v
            case "forward_kl":
                return inverse_power(v, 1.0)
            case "alpha":
                return inverse_power(v, alpha)
            case "js":
                inside = (0.5 * v.exp()).clamp(max=1.0)
                return inside.log() - (-inside).log1p()

    return normalised(lambda v: world.start + log_ratio(v / beta).clamp(-FAR, FAR), world.reward)


def entropy_scaled(world: Discrete, beta: float, alpha: float) -> Tensor:
    """ref^(1/alpha) exp(r/(alpha beta))/Z: entropy weighs alpha (arXiv 2411.07595, section 3)."""
    return tilt(world.start / alpha, world.reward / (alpha * beta))


def with_length_cost(world: Discrete, beta: float, alpha: float) -> Tensor:
    """What maximises E[r - alpha n] - beta KL: ref exp((r - alpha n)/beta)/Z (arXiv 2403.19159)."""
    return tilt(world.start, (world.reward - alpha * world.lengths) / beta)


def margined_odds(p: Tensor, win: Tensor | float, lose: Tensor | float) -> Tensor:
    """The z that minimises ``-p logsig(z - win) - (1-p) logsig(-z - lose)``.

    Setting the derivative to zero is a quadratic in ``e^z``:
    ``(1-p) e^-win e^2z + (1-2p) e^z - p e^-lose = 0``. With both margins 0 it is logit(p).
    """
    a = (1 - p) * torch.exp(-torch.as_tensor(win, dtype=p.dtype))
    b = 1 - 2 * p
    c = -p * torch.exp(-torch.as_tensor(lose, dtype=p.dtype))
    return ((-b + (b * b - 4 * a * c).sqrt()) / (2 * a)).log()


def of_two(world: Discrete, gap: Tensor) -> Tensor:
    """The log-law of two answers whose log pi(0) - log pi(1) is ``gap`` [X], [X, 2]."""
    return torch.stack([logsigmoid(gap), logsigmoid(-gap)], -1)


def first_wins(world: Discrete) -> Tensor:
    """P(answer 0 labelled preferred to answer 1), [X]."""
    return world.observed[:, 0, 1]


def winners(world: Discrete) -> Tensor:
    """The log-law of the preferred answer of a pair of different answers, [X, Y]."""
    both = world.coverage.unsqueeze(-1) * world.coverage.unsqueeze(-2) * world.observed
    both = both * (1 - torch.eye(both.shape[-1], dtype=both.dtype))
    return (both.sum(-1) / both.sum((-1, -2)).unsqueeze(-1)).log()


def balanced(force: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """The log-law with ``force(log pi) = lambda pi`` for one lambda a prompt, [X, Y].

    The first-order condition of minimising a sum over answers of f(log pi(y)) over laws, with
    ``force = -f'`` so falling that ``force(l) e^-l`` falls; without force, an answer has no mass.
    """

    def answer(log_lambda: Tensor) -> Tensor:
        def excess(logp: Tensor) -> Tensor:
            return log_lambda.exp() - force(logp) * torch.exp(-logp.clamp(-600, 600))

        return bisected(excess, like)

    top = bisected(lambda t: -answer(t).logsumexp(-1, keepdim=True).clamp(-FAR, FAR), like[..., :1])
    return answer(top).log_softmax(-1)


def losers(world: Discrete) -> Tensor:
    """The log-law of the dispreferred answer of a pair of different answers, [X, Y]."""
    other = world.observed.mT
    both = world.coverage.unsqueeze(-1) * world.coverage.unsqueeze(-2) * other
    both = both * (1 - torch.eye(both.shape[-1], dtype=both.dtype))
    return (both.sum(-1) / both.sum((-1, -2)).unsqueeze(-1)).log()


def anchored_winners(world: Discrete, beta: float, net: Tensor) -> Tensor:
    """What minimises ``-sum_y net(y) sig(beta log(pi/ref))``: only answers with net > 0 have mass.

    ``net`` [X, Y]: how much more often an answer is good than bad. Each good one balances
    ``net beta s (1 - s) = lambda pi``, s = sig(beta log(pi/ref)); beta at most 1.
    """

    def force(logp: Tensor) -> Tensor:
        s = torch.sigmoid(beta * (logp - world.start))
        return net * beta * s * (1 - s)

    return balanced(force, world.start)


def gap_of_rewards(shape: Callable[[Tensor], Tensor], difference: Tensor) -> Tensor:
    """The gap log pi(0) - log pi(1) of two answers with shape(log pi(0)) - shape(log pi(1))
    as given, [X]; ``shape`` rises.
    """

    def excess(gap: Tensor) -> Tensor:
        return shape(logsigmoid(gap)) - shape(logsigmoid(-gap)) - difference

    return bisected(excess, difference)


def discounted_tails(ratios: list[Tensor], alpha: float) -> Tensor:
    """Differences [Y, Y] of summed step rewards, what a longer answer says beyond the shorter one
    counting ``alpha``; ``ratios`` holds each answer's steps.
    """

    def reward(own: Tensor, other: Tensor) -> Tensor:
        shared = min(len(own), len(other))
        return own[:shared].sum() + alpha * own[shared:].sum()

    return torch.stack([torch.stack([reward(a, b) - reward(b, a) for b in ratios]) for a in ratios])


def likelihood_ratio_matched(
    world: Discrete, demonstrated: Tensor, weight: Callable[[Tensor], Tensor]
) -> Tensor:
    """The law at which ``q(y) weight(log(pi/ref)) = lambda pi(y)``, q the demonstrations' law.

    The first-order condition of imitation whose pull on an answer falls with its log-ratio.
    """
    return balanced(lambda logp: demonstrated.exp() * weight(logp - world.start), world.start)


def shortfall_charged(world: Discrete, beta: float, lam: float) -> Tensor:
    """Two answers under ``-logsig(beta (h_w - h_l - lam max(0, -h_w)))``, h = log(pi/ref), [X, 2].

    In the gap t of the two log-probabilities both sides are convex, so the minimum is where
    ``p sig(-z_01) (1 + lam [h_0 < 0] pi_1) = (1-p) sig(-z_10) (1 + lam [h_1 < 0] pi_0)``, or at
    the reference where the difference jumps over 0 (arXiv 2402.13228, equation 3).
    """
    p = first_wins(world)

    def slope(gap: Tensor) -> Tensor:
        law = of_two(world, gap)
        h, pi = law - world.start, law.exp()
        short = (-h).clamp(min=0)
        below = (h < 0).to(h.dtype)
        first = torch.sigmoid(-beta * (h[:, 0] - h[:, 1] - lam * short[:, 0]))
        other = torch.sigmoid(-beta * (h[:, 1] - h[:, 0] - lam * short[:, 1]))
        return (1 - p) * other * (1 + lam * below[:, 1] * pi[:, 0]) - p * first * (
            1 + lam * below[:, 0] * pi[:, 1]
        )

    return of_two(world, bisected(slope, p))
