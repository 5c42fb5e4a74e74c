"""Soft actor-critic: critics, actor and temperature, as three objectives over transitions.

A unit has roles ``own`` (state s with the action taken as its step) and ``next`` (state s'). Each
critic is a module that maps (context [U, D], action [U, A]) to a value [U], or to several [J, U];
the module ``log_alpha`` called without arguments gives a scalar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyalign.types import Loss, Needs, Scores, State, needs


def _alpha(scores: Scores) -> Tensor:
    """The temperature as a constant."""
    return torch.exp(torch.as_tensor(scores.modules["log_alpha"]()).detach())


def _values(scores: Scores, names: Sequence[str], context: Tensor, action: Tensor) -> Tensor:
    """Every critic's value of an action, [J, U]."""
    return torch.cat([_rows(scores.modules[name](context, action)) for name in names])


def _rows(value: Tensor) -> Tensor:
    return value if value.dim() > 1 else value.unsqueeze(0)


def soft_target(
    reward: Tensor,
    terminated: Tensor,
    gamma: float,
    q_next: Tensor,
    logp_next: Tensor,
    alpha: Tensor,
) -> Tensor:
    """``y = r + gamma (1 - e) (min_j Qbar_j(s', a') - alpha log pi(a'|s'))`` [U], constant.

    ``terminated`` e [U] is 1 only where the environment ended by itself: a time limit is no end,
    and the value beyond it still counts.
    """
    value = q_next.min(0).values - alpha * logp_next
    return (reward + gamma * torch.where(terminated > 0, 0.0, value)).detach()


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """``0.5 sum_j (Q_j(s, a) - y)^2`` [U] of values [J, U]."""
    return 0.5 * (q - target).square().sum(0)


def actor_loss(logp: Tensor, q: Tensor, alpha: Tensor) -> Tensor:
    """``alpha log pi(a|s) - min_j Q_j(s, a)`` [U], a drawn pathwise from the policy."""
    return alpha * logp - q.min(0).values


def temperature_loss(log_alpha: Tensor, logp: Tensor, target_entropy: float) -> Tensor:
    """``-log_alpha sg[log pi(a|s) + Htarget]`` [U]: alpha rises while entropy is below its
    target.
    """
    return -log_alpha * (logp.detach() + target_entropy)


def discrete_value(logp: Tensor, q: Tensor, alpha: Tensor) -> Tensor:
    """``V = sum_a pi(a) (min_j Q_j(a) - alpha log pi(a))`` [...] from logp [..., A], q [J, ...,
    A].
    """
    return (logp.exp() * (q.min(0).values - alpha * logp)).sum(-1)


def discrete_actor_loss(logp: Tensor, q: Tensor, alpha: Tensor) -> Tensor:
    """``sum_a pi(a) (alpha log pi(a) - min_j Q_j(a))`` [...]: exact; minimised by
    softmax(Q/alpha).
    """
    return -discrete_value(logp, q, alpha)


@dataclass(frozen=True)
class SacCritic:
    """``sum_j 0.5 (Q_j(s, a) - y)^2`` with the soft target y of fresh actions in s'.

    Trains the critics. Source: Haarnoja et al. 2018, arXiv 1812.05905, equations 5 and 6.
    """

    gamma: float = 0.99
    critics: tuple[str, ...] = ("q1", "q2")
    targets: tuple[str, ...] = ("q1_target", "q2_target")

    @property
    def needs(self) -> Needs:
        return needs(
            "own",
            "next",
            signals=["context", "steps", "sample", "sample_logp"],
            fields=["reward", "terminated"],
            modules=[*self.critics, *self.targets, "log_alpha"],
        )

    def __call__(self, scores: Scores, state: State) -> Loss:
        own, after = scores["own"], scores["next"]
        fresh = after.signals["sample"][:, 0]
        q_next = _values(scores, self.targets, after.signals["context"], fresh)
        logp_next = after.signals["sample_logp"][:, 0]
        y = soft_target(
            own.fields["reward"].to(logp_next.dtype),
            own.fields["terminated"].to(logp_next.dtype),
            self.gamma,
            q_next,
            logp_next,
            _alpha(scores),
        )
        taken = own.signals["steps"][:, 0]
        q = _values(scores, self.critics, own.signals["context"], taken)
        value = critic_loss(q, y)
        return Loss(
            (scores.per_unit(value, name="critic"),),
            {
                "loss/critic": scores.per_unit(value.detach()),
                "q": scores.per_unit(q.detach().mean(0)),
                "q_target": scores.per_unit(y),
            },
        )


@dataclass(frozen=True)
class SacActor:
    """``alpha log pi(a|s) - min_j Q_j(s, a)`` at a pathwise sample a; the critics are constant.

    Trains the policy. Source: Haarnoja et al. 2018, arXiv 1812.05905, equation 9.
    """

    critics: tuple[str, ...] = ("q1", "q2")

    @property
    def needs(self) -> Needs:
        return needs(
            "own",
            signals=["context", "sample", "sample_logp"],
            modules=[*self.critics, "log_alpha"],
        )

    def __call__(self, scores: Scores, state: State) -> Loss:
        own = scores["own"]
        logp = own.signals["sample_logp"][:, 0]
        q = _values(scores, self.critics, own.signals["context"], own.signals["sample"][:, 0])
        value = actor_loss(logp, q, _alpha(scores))
        return Loss(
            (scores.per_unit(value, name="actor"),),
            {
                "loss/actor": scores.per_unit(value.detach()),
                "entropy": scores.per_unit(-logp.detach()),
            },
        )


@dataclass(frozen=True)
class SacTemperature:
    """``-log_alpha sg[log pi(a|s) + Htarget]``; Htarget defaults to minus the action's dimension.

    Trains ``log_alpha``. Source: Haarnoja et al. 2018, arXiv 1812.05905, equation 18 (with log
    alpha in the place of alpha: the same sign and root).
    """

    target_entropy: float | None = None

    @property
    def needs(self) -> Needs:
        return needs("own", signals=["sample", "sample_logp"], modules=["log_alpha"])

    def __call__(self, scores: Scores, state: State) -> Loss:
        own = scores["own"]
        logp = own.signals["sample_logp"][:, 0]
        target = self.target_entropy
        if target is None:
            target = -float(own.signals["sample"].shape[-1])
        log_alpha = torch.as_tensor(scores.modules["log_alpha"]())
        value = temperature_loss(log_alpha, logp, target)
        return Loss(
            (scores.per_unit(value, name="temperature"),),
            {
                "loss/temperature": scores.per_unit(value.detach()),
                "alpha": scores.per_unit(log_alpha.detach().exp().expand_as(value)),
            },
        )
