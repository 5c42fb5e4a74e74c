"""Arrays of transitions for the numeric entry point: actor and critic, continuous or discrete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from polyalign.errors import NumericsError, OptionError
from polyalign.methods.arrays import Reader
from polyalign.objectives import SacActor, SacCritic, SacTemperature
from polyalign.objectives.actor_critic import (
    critic_loss,
    discrete_actor_loss,
    discrete_value,
    soft_target,
    temperature_loss,
)
from polyalign.recipe import Update
from polyalign.types import Loss, Scores, Term


def is_transitions(updates: Sequence[Update]) -> bool:
    """Whether updates learn from transitions rather than from completions."""
    return all(isinstance(u.objective, (SacCritic, SacActor, SacTemperature)) for u in updates)


def transition_losses(reader: Reader, updates: Sequence[Update]) -> tuple[list[Loss], Tensor]:
    """The updates' losses and the examples' weights.

    ``log_alpha`` is a number; with ``log_pi`` [B, A] over all actions the discrete form is used.
    """
    log_alpha = reader.want("log_alpha", "the temperature's logarithm, a number")
    if log_alpha.numel() != 1:
        raise NumericsError("The array 'log_alpha' is not one number.", "Give a number.")
    reader.finite("log_alpha", log_alpha)
    losses = [_loss(reader, update.objective) for update in updates]
    return losses, losses[0].terms[0].weight


def _loss(reader: Reader, part: Any) -> Loss:
    match part:
        case SacCritic():
            return _critic(reader, part)
        case SacActor():
            return _actor(reader, part)
        case _:
            return _temperature(reader, part)


def _actor(reader: Reader, part: SacActor) -> Loss:
    log_pi = _leaf(reader, "log_pi", "log pi(a|s) of fresh actions")
    q = _leaf(reader, "q_pi", "the critics' values of fresh actions, [J, B]")
    reader.shape("q_pi", q, (q.shape[0], *log_pi.shape))
    if log_pi.dim() == 2:
        alpha = reader.leaf("log_alpha").detach().exp().reshape(())
        return _terms(reader, discrete_actor_loss(log_pi, q, alpha), "actor")
    return part(_scores(reader, log_pi, q_taken=q, names=part.critics), {})


def _critic(reader: Reader, part: SacCritic) -> Loss:
    q = _leaf(reader, "q", "the critics' values of the actions taken, [J, B]")
    q_next = _known(reader, "q_next", "the target critics' values of fresh next actions, [J, B]")
    log_next = _known(reader, "log_pi_next", "log pi(a'|s') of fresh next actions")
    reward = _known(reader, "reward", "one number a transition")
    ended = _known(reader, "terminated", "1 where the environment ended by itself, else 0")
    if bool(((ended != 0) & (ended != 1)).any()):
        raise NumericsError("The array 'terminated' holds more than 0 and 1.", "Give booleans.")
    size = reward.shape[0]
    reader.shape("terminated", ended, (size,))
    reader.shape("q", q, (q.shape[0], size))
    reader.shape("q_next", q_next, (q_next.shape[0], *log_next.shape))
    if log_next.dim() == 2:
        alpha = reader.leaf("log_alpha").detach().exp().reshape(())
        value = discrete_value(log_next, q_next, alpha)
        none = torch.zeros_like(value)
        y = soft_target(reward, ended, part.gamma, value.unsqueeze(0), none, alpha)
        return _terms(reader, critic_loss(q, y), "critic")
    reader.shape("log_pi_next", log_next, (size,))
    scores = _scores(
        reader,
        torch.zeros_like(reward),
        log_next,
        q,
        q_next,
        part.critics,
        part.targets,
        {"reward": reward, "terminated": ended},
    )
    return part(scores, {})


def _temperature(reader: Reader, part: SacTemperature) -> Loss:
    log_pi = _leaf(reader, "log_pi", "log pi(a|s) of fresh actions")
    log_alpha = reader.leaf("log_alpha").reshape(())
    if part.target_entropy is None:
        raise OptionError(
            "sac's temperature needs target_entropy: arrays do not tell the actions' dimension.",
            'Use objective("sac", target_entropy=-dim) or update="policy".',
        )
    if log_pi.dim() == 2:
        entropy = -(log_pi.exp() * log_pi).sum(-1)
        return _terms(
            reader, temperature_loss(log_alpha, -entropy, part.target_entropy), "temperature"
        )
    return part(_scores(reader, log_pi), {})


def _scores(
    reader: Reader,
    log_pi: Tensor,
    log_next: Tensor | None = None,
    q_taken: Tensor | None = None,
    q_next: Tensor | None = None,
    names: Sequence[str] = (),
    targets: Sequence[str] = (),
    fields: dict[str, Tensor] | None = None,
) -> Scores:
    """Scores whose critics answer with the given arrays, whatever they are asked."""
    size = log_pi.shape[0]
    own = torch.arange(size)
    both = torch.cat([log_pi, torch.zeros_like(log_pi) if log_next is None else log_next])
    blank = torch.zeros(2 * size, 1, 1, dtype=torch.float64)
    modules: dict[str, Callable[..., Any]] = {
        "log_alpha": lambda: reader.leaf("log_alpha").reshape(())
    }
    # All of an array's critics answer under the first name, none under the others.
    for group, values in ((names, q_taken), (targets, q_next)):
        for j, name in enumerate(group):
            assert values is not None
            modules[name] = _answer(values if j == 0 else values[:0])
    return Scores(
        logp=torch.zeros(2 * size, 1, dtype=torch.float64),
        mask=torch.ones(2 * size, 1, dtype=torch.bool),
        weight=_weight(reader, size),
        roles={"own": own, "next": own + size},
        signals={
            "context": blank[:, 0],
            "steps": blank,
            "sample": blank,
            "sample_logp": both.unsqueeze(-1),
        },
        fields=fields or {},
        modules=modules,
    )


def _answer(values: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda context, action: values


def _terms(reader: Reader, value: Tensor, name: str) -> Loss:
    weight = _weight(reader, value.shape[0])
    return Loss((Term(value, weight, name=name),), {f"loss/{name}": Term(value.detach(), weight)})


def _weight(reader: Reader, size: int) -> Tensor:
    weight = reader.find("weight")
    if weight is None:
        return torch.ones(size, dtype=torch.float64)
    reader.shape("weight", weight, (size,))
    return weight


def _leaf(reader: Reader, name: str, why: str) -> Tensor:
    reader.finite(name, reader.want(name, why))
    return reader.leaf(name)


def _known(reader: Reader, name: str, why: str) -> Tensor:
    value = reader.want(name, why)
    reader.finite(name, value)
    return value.detach()
