"""Continuous control: a diagonal Gaussian over actions, as it is or squashed into (-1, 1).

Axes: N rows, T steps, S state dimensions, D action dimensions. A context is a state, a tuple of S
floats; a completion is an action, a tuple of D floats. Densities are summed over action
dimensions. Everything is float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyalign.errors import ModelError, NeedsError, OptionError, nearest
from polyalign.policies.modules import (
    Quadratic,
    Regressor,
    Scalar,
    known_options,
    load_parameters,
    network,
)
from polyalign.protocols import Policy, PolicyScores, Rollout, Sampling
from polyalign.types import Row, Rows

OFFERS = frozenset(
    {"kl(ref|policy)", "kl(policy|ref)", "context", "steps", "sample", "sample_logp", "sample_rows"}
)
LOG_STD = (-20.0, 2.0)

# Splitmix64's constants (Steele, Lea and Flood 2014) as signed 64-bit integers.
_GOLDEN, _FIRST, _SECOND = (
    constant - (1 << 64)
    for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class GaussianPolicy:
    """a = mean(s) + std * noise, or its tanh when ``squash``; noise ~ N(0, I).

    Without ``hidden`` layers the mean is linear in the state with a bias, and the log standard
    deviations are free numbers; with them, both are heads of a ReLU network.
    """

    def __init__(
        self,
        states: int,
        actions: int,
        *,
        hidden: Sequence[int] = (),
        squash: bool = False,
        log_std: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.states, self.actions, self.squash = states, actions, squash
        self.linear = not hidden
        if self.linear:
            self.trunk = network((states, actions), seed)
        else:
            self.trunk = network((states, *hidden, 2 * actions), seed)
        last = self.trunk[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.bias.zero_()
            if self.linear:
                last.weight.zero_()
            else:
                last.bias[actions:] = log_std
        self.log_std = nn.Parameter(torch.full((actions,), float(log_std), dtype=torch.float64))

    @property
    def offers(self) -> frozenset[str]:
        return OFFERS if self.squash else OFFERS | {"entropy", "log_collision"}

    def encode(self, context: Any, completion: Any) -> Row:
        if len(context) != self.states:
            raise ModelError(
                f"A state has {len(context)} numbers, and this policy reads {self.states}.",
                "Use the policy's own environment.",
            )
        if completion is None:
            return Row(tuple(context), torch.zeros(0, self.actions, dtype=torch.float64), _ones(0))
        if len(completion) != self.actions:
            raise ModelError(
                f"An action has {len(completion)} numbers, and this policy makes {self.actions}.",
                "Use the policy's own environment.",
            )
        return Row(tuple(context), torch.tensor([completion], dtype=torch.float64), _ones(1))

    def moments(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation [..., D] before any squashing."""
        out = self.trunk(states)
        if self.linear:
            return out, self.log_std.clamp(*LOG_STD).expand_as(out)
        mean, log_std = out.chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD)

    def log_density(self, action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
        """Log-density pi(a|s) [...] of actions [..., D], summed over D."""
        if not self.squash:
            return gaussian(action, mean, log_std)
        edge = 1 - 1e-12
        free = torch.atanh(action.clamp(-edge, edge))
        return gaussian(free, mean, log_std) - log_slope(free)

    def score(
        self,
        rows: Rows,
        want: frozenset[str] = frozenset(),
        draws: Mapping[str, Tensor] | None = None,
        against: Mapping[str, Policy] | None = None,
    ) -> PolicyScores:
        states = state_of(rows)
        mean, log_std = (m.unsqueeze(1) for m in self.moments(states))
        logp = self.log_density(rows.steps.double(), mean, log_std)
        signals: dict[str, Tensor] = {}
        t = max(rows.mask.shape[1], 1)
        if want & {"sample", "sample_logp"}:
            noise = self._noise(len(rows), t, draws or {})
            free = mean + log_std.exp() * noise
            density = gaussian(free, mean, log_std)
            if self.squash:
                density = density - log_slope(free)
            drawn = {"sample": free.tanh() if self.squash else free, "sample_logp": density}
            signals |= {name: drawn[name] for name in want & drawn.keys()}
        for name in want - signals.keys():
            signals[name] = self._signal(name, rows, states, mean, log_std, against or {})
        return PolicyScores(torch.where(rows.mask, logp, 0.0), signals)

    def _signal(
        self,
        name: str,
        rows: Rows,
        states: Tensor,
        mean: Tensor,
        log_std: Tensor,
        against: Mapping[str, Policy],
    ) -> Tensor:
        shape = rows.mask.shape
        if name == "context":
            return states
        if name == "steps":
            return rows.steps
        if name not in self.offers:
            raise NeedsError(
                f"This Gaussian policy has no signal '{name}'.", nearest(name, self.offers)
            )
        if name == "entropy":
            value = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        elif name == "log_collision":
            value = -(log_std + 0.5 * math.log(4 * math.pi)).sum(-1)
        else:
            ref = against.get("ref")
            if not isinstance(ref, GaussianPolicy) or ref.squash != self.squash:
                raise NeedsError(
                    f"'{name}' reads the whole law of a live reference named 'ref'.",
                    "Give the stage a reference 'ref' of the policy's own kind.",
                )
            with torch.no_grad():
                other = [m.unsqueeze(1) for m in ref.moments(states)]
            own = [mean, log_std]
            # Squashing maps both laws alike, so their divergence stays that of the Gaussians.
            value = (
                divergence(*other, *own) if name == "kl(ref|policy)" else divergence(*own, *other)
            )
        return torch.where(rows.mask, value.expand(shape), 0.0)

    def _noise(self, n: int, t: int, draws: Mapping[str, Tensor]) -> Tensor:
        """[N, T, D] standard normal, from draws["noise"] or as a function of draws["seed"] [N]."""
        if "noise" in draws:
            noise = draws["noise"].double()
            if noise.numel() != n * t * self.actions:
                raise NeedsError(
                    f"Noise of shape {tuple(noise.shape)} does not fit {n} rows of {t} actions.",
                    f"Give [{n}, {t}, {self.actions}].",
                )
            return noise.reshape(n, t, self.actions)
        if "seed" in draws:
            return normal(draws["seed"], t, self.actions)
        raise NeedsError(
            "A pathwise sample needs random numbers, and the batch has none.",
            'Put draws["noise"] [N, T, D] or draws["seed"] [N] into the batch.',
        )

    def sample(
        self, contexts: Sequence[Any], n: int, how: Sampling, seeds: Sequence[int]
    ) -> Rollout:
        if how.top_p < 1 or how.top_k:
            raise OptionError("A density cannot be cut to top_p or top_k.", "Use temperature.")
        if how.temperature <= 0:
            raise OptionError(
                f"temperature={how.temperature} leaves no density.", "Give a positive one."
            )
        states = torch.tensor([tuple(c) for c in contexts], dtype=torch.float64)
        with torch.no_grad():
            mean, log_std = (m.repeat_interleave(n, 0) for m in self.moments(states))
            noise = normal(torch.tensor(list(seeds)), self.actions)
            # Temperature t raises the Gaussian's density to the power 1/t, before any squashing.
            wide = log_std + 0.5 * math.log(how.temperature)
            free = mean + wide.exp() * noise
            slope = log_slope(free) if self.squash else torch.zeros(len(free))
            old, logp = gaussian(free, mean, wide) - slope, gaussian(free, mean, log_std) - slope
        actions = (free.tanh() if self.squash else free).tolist()
        payloads = tuple(tuple(a) for a in actions)
        repeated = [tuple(c) for c in contexts for _ in range(n)]
        rows = tuple(self.encode(s, a) for s, a in zip(repeated, payloads, strict=True))
        return Rollout(rows, old.unsqueeze(1), logp.unsqueeze(1), _ones(len(rows)), payloads, n)

    def freeze(self) -> Self:
        twin = copy.copy(self)
        twin.trunk = copy.deepcopy(self.trunk).requires_grad_(False)
        twin.log_std = nn.Parameter(self.log_std.detach().clone(), requires_grad=False)
        return twin

    def trainable(self) -> dict[str, nn.Parameter]:
        own = {f"trunk.{name}": p for name, p in self.trunk.named_parameters()}
        return own | ({"log_std": self.log_std} if self.linear else {})

    def tensors(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.trainable().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        load_parameters(self.trainable(), tensors)

    def build(self, kind: str, options: Mapping[str, Any]) -> nn.Module:
        """Make a "value" V(s) or "q" Q(s, a), quadratic or a network, or a "scalar".

        Options: ``features`` "quadratic" (default) or "mlp" with ``hidden`` and ``seed``; a scalar
        has ``init``.
        """
        if kind == "scalar":
            return Scalar(**known_options(kind, options, "init"))
        sizes = {"value": (self.states, 0), "q": (self.states, self.actions)}
        if kind not in sizes:
            raise OptionError(
                f"A Gaussian policy cannot build the module '{kind}'.",
                nearest(kind, [*sizes, "scalar"]),
            )
        options = known_options(kind, options, "features", "hidden", "seed")
        features = options.pop("features", "mlp" if "hidden" in options else "quadratic")
        if features == "quadratic":
            known_options(kind, options)
            return Quadratic(*sizes[kind])
        if features == "mlp":
            return Regressor(*sizes[kind], **options)
        raise OptionError(
            f"The module '{kind}' has no features '{features}'.",
            nearest(str(features), ["quadratic", "mlp"]),
        )


def state_of(rows: Rows) -> Tensor:
    """The rows' states, [N, S]."""
    return torch.tensor(rows.contexts, dtype=torch.float64)[rows.context]


def gaussian(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log-density of a diagonal Gaussian, summed over the last axis."""
    z = (x - mean) * (-log_std).exp()
    return -(0.5 * z**2 + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)


def log_slope(free: Tensor) -> Tensor:
    """sum_d log d tanh(u)/du, finite for every u: 2 (log 2 - u - softplus(-2u)) (1812.05905, C)."""
    return (2 * (math.log(2) - free - F.softplus(-2 * free))).sum(-1)


def divergence(mean_p: Tensor, log_p: Tensor, mean_q: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of diagonal Gaussians in nats, summed over the last axis."""
    ratio = (2 * (log_p - log_q)).exp()
    shift = ((mean_p - mean_q) * (-log_q).exp()) ** 2
    return (0.5 * (ratio + shift - 1) + log_q - log_p).sum(-1)


def normal(seeds: Tensor, *shape: int) -> Tensor:
    """Standard normal numbers [N, *shape]; row i is a function of ``seeds[i]`` alone.

    Number k of a row is the normal quantile of the hash (splitmix64) of seed + k: counter-based,
    so that a whole batch is drawn at once and company changes nothing.
    """
    count = math.prod(shape)
    z = seeds.long().unsqueeze(-1) + _GOLDEN * torch.arange(1, count + 1)
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    uniform = (_shift(z ^ _shift(z, 31), 11).double() + 0.5) * 2.0**-53
    noise: Tensor = torch.special.ndtri(uniform)
    return noise.reshape(len(seeds), *shape)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of 64-bit integers, which torch only knows as signed."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.bool)
