"""Modules that small policies build: tables, scalars, quadratic forms and small networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyalign.errors import ModelError, OptionError, nearest
from polyalign.types import Rows


def network(sizes: Sequence[int], seed: int | None = None) -> nn.Sequential:
    """A ReLU network in float64; its start is a function of ``seed``, or of torch's own generator.

    A session that builds a module seeds torch by the module's name.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for size, following in zip(sizes[:-1], sizes[1:], strict=True):
        layer = nn.Linear(size, following, dtype=torch.float64)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.uniform_(-1, 1, generator=generator)
                parameter.mul_(size**-0.5)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Critic(nn.Module):
    """A function of a state [..., S] and, when D > 0, of an action [..., T, D].

    Called with rows it returns [N, T] for their own actions; called with a state and an action it
    returns [..., T], with gradient to the action.
    """

    def __init__(self, states: int, actions: int) -> None:
        super().__init__()
        self.states, self.actions = states, actions

    def forward(self, context: Rows | Tensor, action: Tensor | None = None) -> Tensor:
        if isinstance(context, Rows):
            rows = context
            states = torch.tensor(rows.contexts, dtype=torch.float64)[rows.context]
            value = self(states, rows.steps.double())
            return torch.where(rows.mask, value, 0.0)
        if action is None:
            return self.value(context)
        states = context
        if states.dim() < action.dim():
            states = states.unsqueeze(-2).expand(*action.shape[:-1], self.states)
        return self.value(torch.cat([states, action], -1) if self.actions else states)

    def value(self, x: Tensor) -> Tensor:
        """The number [...] of joined inputs [..., S + D]."""
        raise NotImplementedError


class Quadratic(Critic):
    """c + b'x + x'C x: what a linear-quadratic world's values are exactly."""

    index: Tensor

    def __init__(self, states: int, actions: int) -> None:
        super().__init__(states, actions)
        size = states + actions
        self.register_buffer("index", torch.triu_indices(size, size))
        self.weight = nn.Parameter(
            torch.zeros(1 + size + size * (size + 1) // 2, dtype=torch.float64)
        )

    def value(self, x: Tensor) -> Tensor:
        first, second = self.index[0], self.index[1]
        one = torch.ones_like(x[..., :1])
        return torch.cat([one, x, x[..., first] * x[..., second]], -1) @ self.weight


class Regressor(Critic):
    """A small ReLU network."""

    def __init__(
        self, states: int, actions: int, hidden: Sequence[int] = (64, 64), seed: int | None = None
    ) -> None:
        super().__init__(states, actions)
        self.layers = network((states + actions, *hidden, 1), seed)

    def value(self, x: Tensor) -> Tensor:
        value: Tensor = self.layers(x)
        return value.squeeze(-1)


def heap(steps: Tensor, choices: int, prefixes: int) -> Tensor:
    """The prefix number before each step [N, T]: 0, then s V + v + 1, as the nodes of a heap."""
    node = torch.zeros_like(steps)
    for t in range(1, steps.shape[1]):
        node[:, t] = node[:, t - 1] * choices + steps[:, t - 1] + 1
    # Steps behind the end of a row stand on no prefix; any one will do, masks hide them.
    return node.clamp(max=prefixes - 1)


class Table(nn.Module):
    """A number for each (prompt, prefix), and for each choice there when ``width`` > 1; [N, T]."""

    def __init__(
        self, prompts: int, prefixes: int, choices: int, width: int = 1, init: float = 0.0
    ) -> None:
        super().__init__()
        self.choices, self.prefixes = choices, prefixes
        shape = (prompts, prefixes, width)
        self.table = nn.Parameter(torch.full(shape, init, dtype=torch.float64))

    def forward(self, rows: Rows) -> Tensor:
        prompts = torch.tensor([int(c) for c in rows.contexts])[rows.context]
        steps = rows.steps.long()
        at = self.table[
            prompts.unsqueeze(-1).expand_as(steps), heap(steps, self.choices, self.prefixes)
        ]
        if at.shape[-1] > 1:
            at = at.gather(-1, steps.unsqueeze(-1))
        return torch.where(rows.mask, at.squeeze(-1), 0.0)


class Scalar(nn.Module):
    """One trainable number (a multiplier, a log temperature); the same for every row [N]."""

    def __init__(self, init: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(init), dtype=torch.float64))

    def forward(self, rows: Rows | None = None) -> Tensor:
        """[N] for rows; the number itself without them."""
        return self.value if rows is None else self.value.expand(len(rows))


class Logits(nn.Module):
    """``size`` trainable numbers, at zero: the logits of mixing weights, say."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self) -> Tensor:
        """[size]."""
        return self.value


def load_parameters(own: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into parameters by name; raises :class:`ModelError` where they do not fit."""
    for name, value in tensors.items():
        if name not in own:
            raise ModelError(f"This policy has no parameter '{name}'.", nearest(name, own))
        if own[name].shape != value.shape:
            raise ModelError(
                f"The parameter '{name}' has shape {tuple(own[name].shape)}, not "
                f"{tuple(value.shape)}.",
                "Load what the same policy saved.",
            )
        with torch.no_grad():
            own[name].copy_(value)


def known_options(kind: str, options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The options, all of which must be in ``names``; raises :class:`OptionError`."""
    for name in options:
        if name not in names:
            raise OptionError(f"The module '{kind}' has no option '{name}'.", nearest(name, names))
    return dict(options)
