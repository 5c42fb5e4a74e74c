"""A model whose weights lie in parts on several processes (FSDP2), gathered layer by layer.

Each pass through the model gathers a layer's weights, uses them and lets them go; gradients are
summed into the parts. So all processes must make the same passes, and who has less to compute
makes empty ones. Sampling, whose number of passes nobody knows, gathers everything once instead.

A reference is the same model with other values in its parts, which are exchanged while it is
asked: nothing is held twice but what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from polyalign.engine import processes, sharding
from polyalign.errors import ModelError
from polyalign.policies.language import adapters
from polyalign.policies.language.policy import LanguagePolicy

T = TypeVar("T")


class Shards:
    """How a model's weights lie on the processes.

    ``dtype`` is that in which weights are gathered and used; they are held, and their gradients
    summed, as they were loaded. None: as they are held.
    """

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype | None = None) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import (
            MixedPrecisionPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )
        from transformers.modeling_layers import GradientCheckpointingLayer

        _check(model)
        mesh = init_device_mesh(device.type, (processes.count(),))
        wide = torch.float32 if dtype is not None else None
        how: dict[str, Any] = {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=wide),
            # The root too: between two passes its values may be exchanged for a reference's.
            "reshard_after_forward": True,
        }
        self.model = model
        self.dtype = dtype
        layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        for layer in layers:
            fully_shard(layer, **how)
        fully_shard(model, **how)
        model.polyalign_within = _within
        register_fsdp_forward_method(model, "polyalign_within")
        self.modules: list[Any] = [model, *layers]
        for module in self.modules:
            # Sums, not means: the engine's normaliser counts all processes already.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        self._inside = self._whole = False

    def within(self, compute: Callable[[], T]) -> T:
        """What ``compute`` gives while embeddings, norms and head are gathered; layers gather
        themselves. Tensors in it carry gradients back.
        """
        if self._inside or self._whole:
            return compute()
        self._inside = True
        try:
            found: T = self.model.polyalign_within(compute)
        except BaseException:
            self.model.reset_iter_state()
            raise
        finally:
            self._inside = False
        return found

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within, every process holds all weights, and passes ask nothing of the others."""
        for module in self.modules:
            module.unshard()
            module.set_reshard_after_forward(False, recurse=False)
        self._whole = True
        try:
            yield
        finally:
            self._whole = False
            for module in self.modules:
                module.set_reshard_after_forward(True, recurse=False)
            self.reshard()

    def reshard(self) -> None:
        """Let go of whatever is gathered."""
        for module in self.modules:
            module.reshard()

    def passes(self, own: int) -> int:
        """Empty passes that this process makes beside its ``own``, so that all make as many."""
        return 0 if self._whole else processes.largest(own) - own


def _within(compute: Callable[[], T]) -> T:
    # FSDP listens to what comes out, and nobody hears what happens to a view.
    found: T = tree_map_only(Tensor, lambda x: x.clone() if x._is_view() else x, compute())
    return found


def _check(model: nn.Module) -> None:
    """Raise :class:`ModelError` for weights that cannot be cut."""
    whole = [name for name, p in model.named_parameters() if not p.is_floating_point()]
    if whole or getattr(model, "is_quantized", False):
        raise ModelError(
            "A quantised model cannot be sharded"
            + (f" ({whole[0]} is not of floating-point numbers)." if whole else "."),
            "Leave fsdp out (its weights are small), or load the model in full precision.",
        )


class Constant(LanguagePolicy):
    """A sharded policy as it was: the same model, with values of its own while it is asked.

    ``plain`` says that its adapter changes nothing, so that it computes without.
    """

    @classmethod
    def of(cls, policy: LanguagePolicy) -> Constant:
        """The policy as it is now."""
        values = {name: p.detach().clone() for name, p in policy.trainable().items()}
        return cls(policy, values, policy.peft is not None and changes_nothing(values))

    def __init__(self, policy: LanguagePolicy, values: Mapping[str, Tensor], plain: bool) -> None:
        super().__init__(
            policy.model, policy.tokenizer, peft=policy.peft, template=policy.template,
            trunk=policy.trunk, live=False,
        )  # fmt: skip
        self.values = dict(values)
        self.plain = plain
        self._here = False

    @contextmanager
    def present(self) -> Iterator[None]:
        """Within, the model holds this policy's values."""
        if self._here:
            yield
            return
        self._come(True)
        self._here = True
        try:
            yield
        finally:
            self._here = False
            self._come(False)

    def _come(self, come: bool) -> None:
        """Exchange values with the model; the same moves them in and out."""
        if self.plain:
            adapters.enable(self.model, not come)
            return
        assert self.trunk.shards is not None
        self.trunk.shards.reshard()
        with torch.no_grad():
            for name, parameter in self._parameters().items():
                mine, theirs = sharding.local(self.values[name]), sharding.local(parameter)
                aside = theirs.clone()
                theirs.copy_(mine)
                mine.copy_(aside)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.values)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        adapters.set_parameters(self.values, tensors)
        self.plain = False

    def freeze(self) -> LanguagePolicy:
        return Constant(self, {n: v.clone() for n, v in self.values.items()}, self.plain)


def changes_nothing(values: Mapping[str, Tensor]) -> bool:
    """Whether an adapter of these values is exactly the base on all processes."""
    own = any(bool(sharding.local(v).any()) for name, v in values.items() if "lora_A" not in name)
    return not sharding.anywhere(own)


def whole_state(policy: LanguagePolicy) -> dict[str, Tensor] | None:
    """What a sharded policy saves, whole: its model's weights and buffers by name, or what is its
    adapter's own. In process 0; None elsewhere. All processes call it together.
    """
    model = policy.model if policy.peft is None else policy.peft
    known: dict[int, Any] = {}
    found: dict[str, Any] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if policy.peft is not None and "lora_" not in name and "modules_to_save" not in name:
            continue
        if id(value) not in known:  # tied weights stay one tensor
            known[id(value)] = sharding.gathered(value.detach())
        found[name] = known[id(value)]
    return found if processes.rank() == 0 else None
