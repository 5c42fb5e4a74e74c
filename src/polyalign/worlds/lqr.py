"""Linear-quadratic maximum-entropy control, whose soft-optimal policy is a Gaussian in closed form.

s' = A s + B a + w, w ~ N(0, noise^2 I); reward -(s'Q s + a'R a); discount gamma; the policy is
rewarded alpha nats of entropy. Axes: N states, S state dimensions, D action dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polyalign.errors import OptionError
from polyalign.protocols import Policy
from polyalign.types import Rows


@dataclass(frozen=True)
class Lqr:
    """The world's matrices: A [S, S], B [S, D], Q [S, S], R [D, D]."""

    a: Tensor
    b: Tensor
    q: Tensor
    r: Tensor
    gamma: float
    noise: float = 0.0

    @staticmethod
    def make(gamma: float = 0.8, noise: float = 0.0) -> Lqr:
        """A point mass: position and velocity, pushed by one force."""
        f = torch.float64
        return Lqr(
            torch.tensor([[1.0, 0.3], [0.0, 0.9]], dtype=f),
            torch.tensor([[0.0], [0.5]], dtype=f),
            torch.tensor([[1.0, 0.0], [0.0, 0.1]], dtype=f),
            torch.tensor([[0.5]], dtype=f),
            gamma,
            noise,
        )

    @property
    def state_size(self) -> int:
        return int(self.a.shape[0])

    @property
    def action_size(self) -> int:
        return int(self.b.shape[1])

    def reward(self, s: Tensor, a: Tensor) -> Tensor:
        """-(s'Q s + a'R a), [N] from [N, S], [N, D]."""
        return -(s * (s @ self.q)).sum(-1) - (a * (a @ self.r)).sum(-1)

    def move(self, s: Tensor, a: Tensor, w: Tensor | None = None) -> Tensor:
        """The next states [N, S]; ``w`` [N, S] is standard normal noise."""
        mean: Tensor = s @ self.a.T + a @ self.b.T
        return mean if w is None else mean + self.noise * w

    def riccati(self, tolerance: float = 1e-14, limit: int = 100_000) -> Tensor:
        """P with V*(s) = -s'P s + constant: the fixed point of the discounted Riccati equation.

        P = Q + g A'P A - g^2 A'P B (R + g B'P B)^-1 B'P A. Raises :class:`OptionError` when it
        does not converge.
        """
        p = self.q.clone()
        for _ in range(limit):
            k = self._gain(p)
            new = self.q + self.gamma * self.a.T @ p @ (self.a - self.b @ k)
            new = 0.5 * (new + new.T)
            if float((new - p).abs().max()) <= tolerance * float(new.abs().max()):
                return new
            p = new
        raise OptionError("The Riccati recursion does not converge.", "Lower gamma.")

    def _curvature(self, p: Tensor) -> Tensor:
        """M = R + g B'P B: minus half the second derivative of Q* in the action, [D, D]."""
        return self.r + self.gamma * self.b.T @ p @ self.b

    def _gain(self, p: Tensor) -> Tensor:
        gain: Tensor = torch.linalg.solve(self._curvature(p), self.gamma * self.b.T @ p @ self.a)
        return gain

    def optimum(self, alpha: float) -> SoftOptimum:
        """The soft-optimal policy N(-K s, alpha/2 M^-1) and its Q* and V*.

        exp(Q*/alpha) is Gaussian in the action because Q* is quadratic; so V* stays quadratic.
        """
        p = self.riccati()
        m = self._curvature(p)
        covariance = 0.5 * alpha * torch.linalg.inv(m)
        d = self.action_size
        # V(s) = alpha log int exp(Q/alpha) = -s'P s + c with this constant a step ahead of Q's.
        volume = 0.5 * alpha * (d * math.log(math.pi * alpha) - float(torch.logdet(m)))
        spread = self.gamma * self.noise**2 * float(p.trace())
        value_constant = (volume - spread) / (1 - self.gamma)
        return SoftOptimum(self, alpha, self._gain(p), covariance, p, value_constant)

    def alpha_at(self, entropy: float) -> float:
        """The temperature at which the soft-optimal policy has this differential entropy, nats.

        H = (D log(pi e alpha) - log det M) / 2; M does not depend on alpha.
        """
        m = self._curvature(self.riccati())
        d = self.action_size
        return math.exp((2 * entropy + float(torch.logdet(m))) / d - 1) / math.pi


@dataclass(frozen=True)
class SoftOptimum:
    """The closed form at a temperature: ``gain`` K [D, S], ``covariance`` [D, D], ``p`` [S, S]."""

    world: Lqr
    alpha: float
    gain: Tensor
    covariance: Tensor
    p: Tensor
    constant: float

    def mean(self, s: Tensor) -> Tensor:
        """-K s, [N, D]."""
        return -s @ self.gain.T

    @property
    def std(self) -> Tensor:
        """Standard deviation of each action dimension, [D]."""
        return self.covariance.diagonal().sqrt()

    def value(self, s: Tensor) -> Tensor:
        """V*(s) = -s'P s + c, entropy bonus included, [N]."""
        return -(s * (s @ self.p)).sum(-1) + self.constant

    def action_value(self, s: Tensor, a: Tensor) -> Tensor:
        """Q*(s, a) = r + gamma E[V*(s')], [N]."""
        w = self.world
        mean = w.move(s, a)
        spread = w.noise**2 * float(self.p.trace())
        return w.reward(s, a) + w.gamma * (self.value(mean) - spread)

    def log_density(self, s: Tensor, a: Tensor) -> Tensor:
        """Log-density pi*(a|s) = (Q* - V*)/alpha, [N]."""
        return (self.action_value(s, a) - self.value(s)) / self.alpha

    def kl(self, policy: Policy, states: Tensor, samples: int = 64, seed: int = 0) -> float:
        """KL(pi* || policy) in nats, mean over ``states`` [N, S], by antithetic draws from pi*."""
        draw = torch.Generator().manual_seed(seed)
        half = torch.randn(
            samples // 2, len(states), self.gain.shape[0], generator=draw, dtype=torch.float64
        )
        noise = torch.cat([half, -half])
        actions = self.mean(states) + noise @ torch.linalg.cholesky(self.covariance).T
        s = states.expand(len(noise), *states.shape).reshape(-1, states.shape[-1])
        a = actions.reshape(-1, actions.shape[-1])
        rows = [
            policy.encode(tuple(x), tuple(y)) for x, y in zip(s.tolist(), a.tolist(), strict=True)
        ]
        with torch.no_grad():
            logp = policy.score(Rows.collate(rows)).logp.sum(-1)
        return float((self.log_density(s, a) - logp.double()).mean())
