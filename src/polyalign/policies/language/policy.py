"""A causal language model of `transformers` as a policy: its steps are tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from polyalign.engine import processes
from polyalign.errors import ModelError, NeedsError, OptionError, nearest
from polyalign.policies.language import adapters, quantised
from polyalign.policies.language.adapters import LoraSpec
from polyalign.policies.language.cache import TokenCache
from polyalign.policies.language.defaults import dtype_of, template_of
from polyalign.policies.language.layout import lay, passes
from polyalign.policies.language.logits import Head
from polyalign.policies.language.logprobs import token_quantities
from polyalign.policies.language.remembered import Once, Remembered, once
from polyalign.policies.language.saving import write
from polyalign.policies.language.signals import AGAINST, LAW, ROW, two_laws
from polyalign.policies.language.stop_words import stop_words
from polyalign.policies.language.template import Encoded, Template
from polyalign.policies.language.trunk import Trunk
from polyalign.policies.language.vllm_sampler import Vllm
from polyalign.policies.modules import Logits, known_options
from polyalign.protocols import Policy, PolicyScores, Rollout, Sampling
from polyalign.types import Row, Rows, signal

T = TypeVar("T")


class LanguagePolicy:
    """A causal language model, whole or with a low-rank adapter.

    The model is always in evaluation mode: there is no dropout, and scores are a function of
    parameters and rows. Log-probabilities are float32 or better, on the model's device.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        peft: Any = None,
        template: Template | None = None,
        trunk: Trunk | None = None,
        live: bool = True,
        quantize: quantised.Bits | None = None,
        **limits: Any,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.peft = peft
        self.live = live
        self.quantize = quantize
        """How the base was quantised when it was loaded, so that :meth:`save` can note it."""
        self.remembered: Remembered | Once | None = None
        """Where a constant's states are kept (:meth:`remember`, :meth:`once`)."""
        self.sampler: Vllm | None = None
        """What draws instead of our own sampling; constants made of this policy share it."""
        self._stop_words: Tensor | None = None
        self.tokens: TokenCache | None = None
        """Rows that were encoded before, where :meth:`encode` looks first."""
        self.trunk = trunk or Trunk(model)
        self.template = template or template_of(model, tokenizer, **limits)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        lora: LoraSpec | None = None,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        max_length: int | None = None,
        max_prompt_length: int | None = None,
        assistant: Literal["last", "all"] = "last",
        checkpointing: bool = False,
        seed: int = 0,
        frozen: bool = False,
        attn: str | None = None,
        quantize: quantised.Bits | None = None,
        trust_remote_code: bool = False,
        fsdp: bool = False,
    ) -> LanguagePolicy:
        """Load a model folder, cached name or hub id; an adapter folder goes on from its adapter.

        ``lora`` adds a new adapter, initialised from ``seed``; without it all weights train, unless
        ``frozen``. ``dtype`` is that of the computation (default float32 on a CPU, bfloat16 on a
        GPU); whatever trains is held in float32. ``checkpointing`` computes each layer again in
        the backward pass instead of keeping it. ``quantize`` holds the base in 4 or 8 bits, under
        an adapter or frozen; the base of an adapter is as it was in training. ``fsdp`` lays
        weights, gradients and optimizer state in parts on all processes.

        Raises :class:`ModelError` when model, tokenizer, adapter and options do not fit.
        """
        from polyalign.policies.language import folders, models

        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        compute = dtype_of(dtype, device)
        options: dict[str, Any] = {"attn": attn, "trust_remote_code": trust_remote_code}
        folder = models.resolve(path, trust_remote_code=trust_remote_code)
        adapted = folders.is_adapter(folder)
        if adapted and lora is not None:
            raise ModelError(
                f"{path} is an adapter already, and a new LoRA was asked for.",
                "Leave the LoRA options out to train this adapter on, or merge it first: "
                "polyalign model merge",
            )
        whole = lora is None and not adapted and not frozen
        quantize = quantize or quantised.noted(folder)
        if whole and (quantize or quantised.method_of(folder)):
            raise ModelError(
                f"{path}: quantised weights cannot be trained, only adapters on them.",
                "Leave full out (or quantize).",
            )
        held = torch.promote_types(compute, torch.float32) if whole else compute
        base = str(folders.adapter_base(folder)) if adapted else str(path)
        model = models.load_model(
            # Parts go to their device as they are cut; the whole might not fit there.
            base,
            dtype=held,
            device="cpu" if fsdp else str(device),
            quantize=quantize,
            **options,
        )
        tokenizer = models.load_tokenizer(folder, trust_remote_code=trust_remote_code)
        models.check_vocabulary(model, tokenizer)
        peft = None
        if adapted:
            peft = adapters.attach_folder(model, folder)
        elif lora is not None:
            peft = adapters.attach(model, lora, seed, base)
        if peft is not None:
            model = peft.get_base_model()
        narrow = compute if held != compute else None
        trunk = Trunk(model, autocast=None if fsdp else narrow)
        if checkpointing:
            trunk.checkpoint_layers()
        policy = cls(
            model,
            tokenizer,
            peft=peft,
            trunk=trunk,
            live=not frozen,
            quantize=quantize,
            max_length=max_length,
            max_prompt_length=max_prompt_length,
            assistant=assistant,
        )
        model.requires_grad_(whole)
        for parameter in policy.trainable().values():
            parameter.requires_grad_(True)
        if fsdp:
            from polyalign.policies.language.sharded import Shards

            trunk.shards = Shards(model, device, narrow)
        return policy

    @property
    def device(self) -> torch.device:
        return self.trunk.device

    @property
    def lockstep(self) -> bool:
        """Whether all processes must ask it equally often, as its weights are sharded."""
        return self.trunk.shards is not None

    def present(self) -> AbstractContextManager[None]:
        """Within, the model holds this policy's values; a sharded constant's come and go."""
        return nullcontext()

    @property
    def offers(self) -> frozenset[str]:
        return LAW | AGAINST | ROW | {"sample_rows"}

    def encode(self, context: Any, completion: Any) -> Row:
        """The row of a prompt and a completion; see :class:`Template` for what becomes of them."""
        kept = None if self.tokens is None else self.tokens.find(context, completion)
        return self.encoded(context, completion).row if kept is None else kept

    def encoded(self, context: Any, completion: Any) -> Encoded:
        """The row and what the length limits, tokenizer and template did to it."""
        return self.template.encode(context, completion)

    def score(
        self,
        rows: Rows,
        want: frozenset[str] = frozenset(),
        draws: Mapping[str, Tensor] | None = None,
        against: Mapping[str, Policy] | None = None,
    ) -> PolicyScores:
        """Log-probabilities [N, T] and the signals in ``want``, each [N, T], 0 where masked.

        Raises :class:`NeedsError` for a signal that is not offered, or one of two laws without a
        live reference of the same vocabulary.
        """
        unknown = {name for name in want if signal(name)[0] not in LAW | AGAINST | ROW}
        if unknown:
            name = min(unknown)
            raise NeedsError(
                f"A language model does not offer the signal '{name}'.",
                nearest(name, LAW | AGAINST | ROW),
            )
        n, t = rows.mask.shape
        reference = None
        if two_laws(want):
            other = (against or {}).get("ref")
            if not isinstance(other, LanguagePolicy):
                raise NeedsError(
                    "A divergence over whole laws needs a live reference that is a language model.",
                    "Use a reference by weights (start, previous or a model folder).",
                )
            with torch.no_grad():
                reference = other.law(rows)

        def compute() -> tuple[Tensor, dict[str, Tensor]]:
            states, own = self._states(rows)
            targets = rows.steps.to(own.device).flatten()[own]
            return own, token_quantities(states, self.trunk.head, targets, want - ROW, reference)

        own, found = self._asked(compute)

        def placed(values: Tensor) -> Tensor:
            return values.new_zeros(n * t).index_put((own,), values).reshape(n, t)

        signals = {name: placed(found[name]) for name in want - ROW}
        for name in want & ROW:
            steps = rows.steps.to(own.device)
            signals[name] = steps if name == "steps" else self._stops().to(own.device)[steps]
        return PolicyScores(placed(found["logp"]), signals)

    def _stops(self) -> Tensor:
        """1 for each token that is a function word, [V]."""
        if self._stop_words is None:
            self._stop_words = stop_words(self.tokenizer, self.trunk.config.vocab_size)
        return self._stop_words

    def _asked(self, compute: Callable[[], T]) -> T:
        """What ``compute`` gives with this policy's weights at hand."""
        with self.present():
            self.trunk.layout()
            return self.trunk.within(compute)

    def law(self, rows: Rows) -> tuple[Tensor, Head]:
        """The states [M, H] before the rows' own steps, and the head that reads them."""

        def compute() -> tuple[Tensor, Head]:
            head = self.trunk.head  # a gathered one goes when the pass ends
            return self._states(rows)[0], head.copy() if self.lockstep else head

        return self._asked(compute)

    def states(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The states [M, H] that predict the rows' own steps, and the steps' places [M].

        A place is an index into [N * T]. The steps are in the order of their places, so two
        policies' states belong together.
        """
        return self._asked(lambda: self._states(rows))

    once = once

    def remember(self, folder: Path, dtype: str) -> None:
        """Keep this constant's states in a folder, as a dtype, and read them there from now on."""
        self.remembered = Remembered(folder, dtype_of(dtype, self.device), processes.rank())

    def _states(self, rows: Rows) -> tuple[Tensor, Tensor]:
        if self.remembered is not None:
            states, own = self.remembered.states(rows, self._computed)
            return states.to(self.device), own.to(self.device)
        return self._computed(rows)

    def _computed(self, rows: Rows) -> tuple[Tensor, Tensor]:
        kind = self.trunk.layout(rows)
        states, places = [], []
        for index in passes(rows, kind):
            laid = lay(rows, kind, index).to(self.device)
            states.append(self.trunk.states(laid))
            places.append(laid.own)
        shards = self.trunk.shards
        for _ in range(0 if shards is None else shards.passes(len(states))):
            # Another process has more to compute: a pass for nothing, but part of the graph.
            idle = lay(_ONE_TOKEN, "plain").to(self.device)
            states.append((0.0 * self.trunk.states(idle))[:0])
            places.append(idle.own[:0])
        if not states:
            return self.trunk.no_states(), torch.zeros(0, dtype=torch.long, device=self.device)
        own = torch.cat(places)
        order = own.argsort()
        return torch.cat(states)[order], own[order]

    def sample(
        self, contexts: Sequence[Any], n: int, how: Sampling, seeds: Sequence[int]
    ) -> Rollout:
        """``n`` completions a context, row ``i`` drawn with ``seeds[i]``, whatever is beside it.

        Sharded weights are gathered once for all steps: nobody knows how many there will be.
        """
        from polyalign.policies.language.generate import generate

        shards = self.trunk.shards
        with self.present(), nullcontext() if shards is None else shards.whole():
            return generate(self, contexts, n, how, seeds)

    def freeze(self) -> LanguagePolicy:
        """This policy as it is now, as a constant.

        The base of an adapter is shared. An adapter that changes nothing yet costs nothing: the
        constant computes without it. A constant's constant has weights of its own to ``load``.
        """
        if self.lockstep:
            from polyalign.policies.language.sharded import Constant

            return Constant.of(self)
        wrapped = self.peft if self.peft is not None else self.model
        wrapped = adapters.twin(wrapped, self._parameters().values())
        model = wrapped if self.peft is None else wrapped.get_base_model()
        for parameter in self._parameters(model).values():
            parameter.requires_grad_(False)
        if self.peft is not None and adapters.changes_nothing(model):
            adapters.enable(model, False)
        frozen = LanguagePolicy(
            model,
            self.tokenizer,
            peft=None if self.peft is None else wrapped,
            template=self.template,
            trunk=self.trunk.of(model),
            live=False,
            quantize=self.quantize,
        )
        frozen.sampler = self.sampler
        return frozen

    def settle(self) -> LanguagePolicy:
        """This policy itself, a constant from now on."""
        self.live = False
        self.model.requires_grad_(False)
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training may move; none of a constant policy."""
        return self._parameters() if self.live else {}

    def tensors(self) -> dict[str, Tensor]:
        """The values that ``load`` sets, by name, of a live or a constant policy."""
        return {name: p.detach() for name, p in self._parameters().items()}

    def _parameters(self, model: Any = None) -> dict[str, nn.Parameter]:
        model = self.model if model is None else model
        if self.peft is None:
            return dict(model.named_parameters())
        return adapters.adapter_parameters(model)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the values of ``tensors()`` by name.

        Raises :class:`ModelError` when names or shapes do not fit.
        """
        adapters.set_parameters(self._parameters(), dict(tensors))
        if self.peft is not None:
            adapters.enable(self.model, True)

    def build(self, kind: str, options: Mapping[str, Any]) -> nn.Module:
        """A module beside the policy: "value", a scalar head over each step's state, or "logits",
        ``size`` free numbers.
        """
        from polyalign.policies.language.heads import Value

        if kind == "logits":
            return Logits(**known_options(kind, options, "size")).to(self.device)
        if kind != "value":
            raise OptionError(
                f"A language model has no module '{kind}'.", nearest(kind, ["value", "logits"])
            )
        return Value(self, **options)

    def save(
        self,
        folder: str | Path,
        dtype: torch.dtype | None = None,
        *,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Path:
        """Write a folder that `transformers` (or `peft`, for an adapter) loads: safetensors only.

        ``dtype`` is that of the written weights (default: as held); tokenizer and chat template
        are written along, and how an adapter's base was quantised. ``weights`` are what
        :func:`sharded.whole_state` gathered, where the policy is sharded. Raises
        :class:`ModelError` for a quantised model without an adapter.
        """
        return write(self, Path(folder), dtype, weights)


_ONE_TOKEN = Rows.collate([Row((0,), torch.tensor([0]), torch.tensor([True]))])
"""The smallest row there is."""
