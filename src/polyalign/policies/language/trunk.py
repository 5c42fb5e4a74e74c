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
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyalign.errors import ModelError
from polyalign.policies.language import attention, fused
from polyalign.policies.language.layout import Kind, Laid, lay
from polyalign.policies.language.logits import Head, narrow_products
from polyalign.policies.language.logprobs import token_quantities
from polyalign.types import Row, Rows

log = logging.getLogger(__name__)

T = TypeVar("T")


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
        self._narrow: int | None = None
        self._told = False
        self.shards: Any = None
        """How the weights lie on several processes (:class:`sharded.Shards`), if they do."""
        fused.install(model)

    def of(self, model: Any) -> Trunk:
        """The same for a copy of the model."""
        other = Trunk(model, self.autocast)
        other.splits, other._layout, other._narrow = self.splits, self._layout, self._narrow
        return other

    @property
    def dtype(self) -> torch.dtype:
        """In which the model computes."""
        gathered = None if self.shards is None else self.shards.dtype
        found: torch.dtype = self.autocast or gathered or self.model.dtype
        return found

    def within(self, compute: Callable[[], T]) -> T:
        """What ``compute`` gives with the model's weights at hand: sharded ones are gathered."""
        return compute() if self.shards is None else self.shards.within(compute)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def head(self) -> Head:
        """The output head as it is now; states are the logits themselves where it is not known."""
        head = _head(self.model) if self.splits else None
        if head is None:
            return Head()
        return replace(head, narrow=narrow_products(self.device, self.dtype))

    def layout(self, rows: Rows | None = None) -> Kind:
        """The best layout that this model computes exactly (these rows); checked at first call."""
        if self._layout is None:
            with torch.no_grad():
                self._layout = self._check()
        if self._layout == "packed" and self._narrow is not None and rows is not None:
            longest = max((len(context) for context in rows.contexts), default=0)
            if longest + rows.mask.shape[1] > self._narrow:
                self._say_narrow()
                return "plain"
        return self._layout

    def _say_narrow(self) -> None:
        if not self._told:
            log.info(
                "%s: rows longer than its sliding window of %d are one sequence each, as its "
                "layers do not name the window to their attention.",
                type(self.model).__name__,
                self._narrow,
            )
        self._told = True

    def states(self, laid: Laid) -> Tensor:
        """The states [M, H] that predict the own steps of a layout (or their logits [M, V])."""
        arguments = {
            "input_ids": laid.ids,
            "attention_mask": self._mask(laid),
            "position_ids": laid.positions,
        }
        module = self.model.base_model if self.splits else self.model
        with attention.packed(self.config, laid.row):
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
        if laid.kind == "packed":
            return None
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
        dtype = self.dtype
        nothing = torch.zeros((), dtype=dtype, device=sees.device)
        return torch.where(sees, nothing, torch.finfo(dtype).min)

    def _check(self) -> Kind:
        rows = self._few()
        dtype = self.dtype
        tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 0.15
        splits, self.splits = self.splits, False
        with fused.off(self.model):
            whole = self._logp(rows, "plain")
        if not bool((self._logp(rows, "plain") - whole).abs().max() <= tolerance):
            fused.switch(self.model, False)
            log.info("%s: its own modules, as ours differ.", type(self.model).__name__)
        self._check_causal(rows, whole, tolerance)
        self.splits = splits
        if self.splits:
            self.splits = bool((self._logp(rows, "plain") - whole).abs().max() <= tolerance)
            if not self.splits:
                log.info(
                    "%s: states times head are not the model's logits; using its own logits.",
                    type(self.model).__name__,
                )
        return self._best(rows, tolerance)

    def _check_causal(self, rows: Rows, logp: Tensor, tolerance: float) -> None:
        """Raise :class:`ModelError` where other tokens at a row's end change what comes before."""
        steps = rows.steps.clone()
        last = rows.mask.sum(1) - 1
        each = torch.arange(len(steps))
        for at in (last, last - 1):  # the last is not laid out
            steps[each, at] = (steps[each, at] + 1) % self.config.vocab_size
        before = rows.mask & (torch.arange(steps.shape[1]) < (last - 1).unsqueeze(1))
        gap = (self._logp(replace(rows, steps=steps), "plain") - logp).abs()
        # Most places must differ: narrow dtypes may send a token or two to other experts. What is
        # not finite is told where it is computed.
        if bool(gap[before[rows.mask].to(gap.device)].nan_to_num(0.0).median() > tolerance):
            raise ModelError(
                f"{type(self.model).__name__} sees tokens that come later, so it gives no "
                "probability of an answer word by word.",
                "Use a causal language model (a folder of an encoder may want "
                '"is_decoder": true in its config.json).',
            )

    def _best(self, rows: Rows, tolerance: float) -> Kind:
        """The first layout that gives the same numbers as one sequence a row."""
        name = type(self.model).__name__
        implementation = getattr(self.config, "_attn_implementation", None)
        types = set(getattr(self.config, "layer_types", None) or ())
        if implementation not in ("sdpa", "eager"):
            log.info("%s: one sequence a row, as attention is %s.", name, implementation)
            return "plain"
        if types - {"full_attention", "sliding_attention"}:
            log.info("%s: one sequence a row, as it has layers of %s.", name, sorted(types))
            return "plain"
        plain = self._logp(rows, "plain")
        kinds: tuple[tuple[Kind, str], ...] = (
            ("packed", "one group a row"),
            ("shared", "one sequence a row"),
        )
        for kind, instead in kinds:
            try:
                gap = float((self._logp(rows, kind) - plain).abs().max())
            except Exception as error:  # whatever a foreign forward pass raises
                brief = (str(error).splitlines() or [type(error).__name__])[0]
                log.info("%s: %s, as it cannot be %s (%s).", name, instead, kind, brief)
                continue
            if gap <= tolerance:
                return kind
            log.info("%s: %s, as rows %s differ by %.1e.", name, instead, kind, gap)
        return "plain"

    def _logp(self, rows: Rows, kind: Kind) -> Tensor:
        laid = lay(rows, kind).to(self.device)
        targets = rows.steps.to(self.device).flatten()[laid.own]
        logp = self.within(lambda: token_quantities(self.states(laid), self.head, targets)["logp"])
        if laid.row is not None:
            self._narrow = self._unnamed(laid.row.windows)
        return logp[laid.own.argsort()]

    def _unnamed(self, named: list[int | None]) -> int | None:
        """The sliding window, if layers that have one do not tell their attention."""
        window = getattr(self.config, "sliding_window", None)
        types = getattr(self.config, "layer_types", None)
        layers = int(self.config.num_hidden_layers)
        has = [t == "sliding_attention" for t in types] if types else [True] * layers
        return None if named == [window if x else None for x in has] else window

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
                layer.forward = _Again(layer.forward, self.config)


class _Again:
    """A layer's forward pass that keeps its inputs only."""

    def __init__(self, forward: Callable[..., Any], config: Any) -> None:
        self.forward = forward
        self.config = config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        # The row is remembered too: the backward pass runs after it has been left.
        row = attention.current()
        config = self.config

        def again(*args: Any, **kwargs: Any) -> Any:
            with attention.packed(config, row):
                return self.forward(*args, **kwargs)

        return checkpoint(again, *args, use_reentrant=False, **kwargs)


def _head(model: Any) -> Head | None:
    """The head of a model, by its output embedding and the numbers that its configuration names."""
    output = model.get_output_embeddings()
    if not isinstance(output, nn.Linear) or model.base_model is model:
        return None
    if not output.weight.is_floating_point():  # quantised: only the layer itself can read it
        return None
    config = model.config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere; Falcon-H1
        value = getattr(config, name, None)
        scale *= 1.0 if value is None else float(value)
    divisor = getattr(config, "logits_scaling", None)  # Granite
    scale /= 1.0 if divisor is None else float(divisor)
    return Head(output.weight, output.bias, scale, getattr(config, "final_logit_softcapping", None))
