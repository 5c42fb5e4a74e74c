"""The two halves of a causal language model: a trunk that makes states, a head that reads them.

Models differ in what lies between states and logits, and in which masks they take. What is
assumed here is checked once on the model itself, on a few tokens; where it does not hold the
whole model's logits, or one sequence a row, are used instead, and the log says why.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyalign.policies.language.layout import Kind, Laid, lay
from polyalign.policies.language.logprobs import Head, token_quantities
from polyalign.types import Row, Rows

log = logging.getLogger(__name__)


class Trunk:
    """A model's states and head, and the layout that it can compute.

    ``autocast`` is the dtype to compute in when the weights are held in a wider one.
    """

    def __init__(self, model: Any, autocast: torch.dtype | None = None) -> None:
        self.model = model
        self.autocast = autocast
        self.config = model.config.get_text_config()
        self.splits = _head(model) is not None
        self._layout: Kind | None = None

    def of(self, model: Any) -> Trunk:
        """The same for a copy of the model."""
        other = Trunk(model, self.autocast)
        other.splits, other._layout = self.splits, self._layout
        return other

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def head(self) -> Head:
        """The output head as it is now; states are the logits themselves where it is not known."""
        head = _head(self.model) if self.splits else None
        return head or Head()

    def layout(self) -> Kind:
        """The best layout that this model computes exactly; checked at the first call."""
        if self._layout is None:
            with torch.no_grad():
                self._layout = self._check()
        return self._layout

    def states(self, laid: Laid) -> Tensor:
        """The states [M, H] that predict the own steps of a layout (or their logits [M, V])."""
        arguments = {
            "input_ids": laid.ids,
            "attention_mask": self._mask(laid),
            "position_ids": laid.positions,
        }
        module = self.model.base_model if self.splits else self.model
        out = self.call(module, arguments)
        sequence = out.last_hidden_state if self.splits else out.logits
        return sequence.flatten(0, 1)[laid.where]

    def call(self, module: nn.Module, arguments: dict[str, Any], **more: Any) -> Any:
        """A forward pass with those arguments that the module knows."""
        known = inspect.signature(module.forward).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
        if "position_ids" not in known and not open_ended:
            arguments = {k: v for k, v in arguments.items() if k != "position_ids"}
        cast = (
            contextlib.nullcontext()
            if self.autocast is None
            else torch.autocast(self.device.type, self.autocast)
        )
        with cast:
            return module(**arguments, **({"use_cache": False} | more))

    def no_states(self) -> Tensor:
        """States of no steps at all."""
        head = self.head
        width = self.config.vocab_size if head.weight is None else head.weight.shape[1]
        return torch.zeros(0, width, device=self.device, dtype=self.model.dtype)

    def _mask(self, laid: Laid) -> Any:
        if laid.kind == "plain":
            # Padding is on the right, where causal attention never looks: nothing to mask, and no
            # query without a key.
            return torch.ones_like(laid.ids)
        window = getattr(self.config, "sliding_window", None)
        types = set(getattr(self.config, "layer_types", None) or ())
        if not types:
            return self._form(laid.sees(window))
        if types == {"full_attention"}:
            return self._form(laid.sees())
        return {
            "full_attention": self._form(laid.sees()),
            "sliding_attention": self._form(laid.sees(window)),
        }

    def _form(self, sees: Tensor) -> Tensor:
        """A mask as attention reads it: bool for sdpa, added to the scores for eager."""
        if self.config._attn_implementation == "sdpa":
            return sees
        dtype = self.autocast or self.model.dtype
        nothing = torch.zeros((), dtype=dtype, device=sees.device)
        return torch.where(sees, nothing, torch.finfo(dtype).min)

    def _check(self) -> Kind:
        rows = self._few()
        dtype = self.autocast or self.model.dtype
        tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 0.15
        if self.splits:
            ours = self._logp(rows, "plain")
            self.splits = False
            whole = self._logp(rows, "plain")
            self.splits = bool((ours - whole).abs().max() <= tolerance)
            if not self.splits:
                log.info(
                    "%s: states times head are not the model's logits; using its own logits.",
                    type(self.model).__name__,
                )
        return "shared" if self._shares(rows, tolerance) else "plain"

    def _shares(self, rows: Rows, tolerance: float) -> bool:
        name = type(self.model).__name__
        attention = getattr(self.config, "_attn_implementation", None)
        types = set(getattr(self.config, "layer_types", None) or ())
        if attention not in ("sdpa", "eager"):
            log.info("%s: one sequence a row, as attention is %s.", name, attention)
            return False
        if types - {"full_attention", "sliding_attention"}:
            log.info("%s: one sequence a row, as it has layers of %s.", name, sorted(types))
            return False
        try:
            shared = self._logp(rows, "shared")
        except Exception as error:  # whatever a foreign forward pass raises at an unknown mask
            log.info("%s: one sequence a row, as it refuses a mask of its own (%s).", name, error)
            return False
        gap = float((shared - self._logp(rows, "plain")).abs().max())
        if not gap <= tolerance:
            log.info("%s: one sequence a row, as sharing a context differs by %.1e.", name, gap)
            return False
        return True

    def _logp(self, rows: Rows, kind: Kind) -> Tensor:
        laid = lay(rows, kind).to(self.device)
        targets = rows.steps.to(self.device).flatten()[laid.own]
        logp = token_quantities(self.states(laid), self.head, targets)["logp"]
        return logp[laid.own.argsort()]

    def _few(self) -> Rows:
        """Two rows of one context and one of another, of fixed tokens."""
        made = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.config.vocab_size, (24,), generator=made)
        context, other = tuple(ids[:6].tolist()), tuple(ids[6:9].tolist())
        cut = ((context, ids[9:14]), (context, ids[14:21]), (other, ids[21:24]))
        return Rows.collate([Row(c, s, torch.ones(len(s), dtype=torch.bool)) for c, s in cut])

    def checkpoint_layers(self) -> None:
        """Compute each layer again in the backward pass instead of keeping its activations."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        for layer in self.model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.forward = _Again(layer.forward)


class _Again:
    """A layer's forward pass that keeps its inputs only."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)
        return self.forward(*args, **kwargs)


def _head(model: Any) -> Head | None:
    """The head of a model, by its output embedding and the numbers that its configuration names."""
    output = model.get_output_embeddings()
    if not isinstance(output, nn.Linear) or model.base_model is model:
        return None
    config = model.config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere; Falcon-H1
        value = getattr(config, name, None)
        scale *= 1.0 if value is None else float(value)
    divisor = getattr(config, "logits_scaling", None)  # Granite
    scale /= 1.0 if divisor is None else float(divisor)
    return Head(output.weight, output.bias, scale, getattr(config, "final_logit_softcapping", None))
