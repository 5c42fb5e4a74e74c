"""A GPU that is not there: tensors that say "cuda", lie on the CPU and do not meet its tensors.

Code that runs on it mixes no devices, calls no kernel that only a CPU has, and gives the numbers
of the CPU. Speed, the GPU's own kernels and their rounding it cannot show. PyTorch's C++ side
takes the tensors for ones without values ("meta"), so every operation reaches Python, where it is
computed on the values that they hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

GPU = torch.device("cuda:0")


class Far(Tensor):
    """A tensor on the device; ``near`` holds its values."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        made: Far = Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device="meta",
        )
        made.near = near
        return made

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)

    def __repr__(self, **kwargs: Any) -> str:
        return f"Far({self.near!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made: Any = Far(self.near.clone())
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made)
        memo[id(self)] = made.requires_grad_(self.requires_grad)
        return made

    def data_ptr(self) -> int:
        return self.near.data_ptr()

    def tolist(self) -> Any:
        return self.near.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a tensor of cuda:0 has no numpy array: call cpu() first")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _on_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _near(tree: Any) -> Any:
    return tree_map_only(Far, lambda x: x.near, tree)


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: on one device alone, or the copy from one to the other."""
    aten = torch.ops.aten
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    device = kwargs.get("device")
    if func is aten.copy_.default:
        func(*_near(args), **_near(kwargs))
        return args[0]
    if device is not None:
        nowhere = torch.device(device).type == "meta"
        if nowhere and _loading:
            return func(*args, **kwargs)
        # C++ asks for more of what it takes for tensors without values.
        far = nowhere or _on_gpu(device)
        kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"}
        out = func(*_near(args), **_near(kwargs) | {"device": torch.device("cpu")})
        out = out.clone() if any(out is _near(x) for x in tensors) else out
        return Far(out) if far else out
    if not any(isinstance(x, Far) for x in tensors):
        return func(*args, **kwargs)
    near = [x for x in tensors if not isinstance(x, Far)]
    if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
        near = [x for x in near if not any(x is i for i in args[1])]  # indices may lie on the CPU
    joined = func in (aten.cat.default, aten.stack.default)
    if any(x.dim() > 0 or joined for x in near):
        sizes = [tuple(x.shape) for x in near]
        raise RuntimeError(f"{func}: all tensors must be on cuda:0; on the CPU: {sizes}")
    if "for_cpu" in func._schema.name:
        raise RuntimeError(f"{func} is a kernel of the CPU")
    if func is aten.mm.dtype:  # narrow numbers, summed in another dtype: not on a CPU
        func, args = aten.mm.default, (args[0].to(args[2]), args[1].to(args[2]))
    out = tree_map_only(Tensor, Far, func(*_near(args), **_near(kwargs)))
    return return_and_correct_aliasing(func, args, kwargs, out)


_loading: list[bool] = []


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


_PRODUCTS = (functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__)
"""What autocast computes in its narrow dtype."""


class _Functions(TorchFunctionMode):
    """What C++ would do before any operation is seen."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention and isinstance(args[0], Far):
            return _attention(*args, **kwargs)
        if func in _PRODUCTS and torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            args = [x.to(dtype) if isinstance(x, Far) else x for x in args]
        if func in (torch.tensor, torch.as_tensor) and _on_gpu(kwargs.get("device")):
            return func(*args, **kwargs | {"device": "cpu"}).to(GPU)
        if func is Tensor.new_tensor and isinstance(args[0], Far):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype} | kwargs).to(GPU)
        if func is Tensor.cuda:
            return args[0].to(GPU)
        if func is torch.device:
            return func(*args, **kwargs)
        return func(*map(_indexed, args), **{k: _indexed(v) for k, v in kwargs.items()})


def _indexed(value: Any) -> Any:
    """A device named without an index is the first."""
    named = isinstance(value, torch.device) and value.index is None and value.type == "cuda"
    return GPU if named or (isinstance(value, str) and value == "cuda") else value


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    times = query.shape[-3] // key.shape[-3]
    key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    score = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(score.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        score = score.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        score = score + attn_mask
    return score.softmax(-1).nan_to_num(0.0).to(value.dtype) @ value


def _flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Any = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    kernel_options: Any = None,
) -> Tensor:
    """FlexAttention by its formula, over all places."""
    times = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    i = torch.arange(query.shape[2], device=query.device)
    score = query @ key.transpose(-1, -2) * scale
    if score_mod is not None:
        score = score_mod(score, None, None, i.unsqueeze(1), i)
    sees = block_mask.mask_mod(None, None, i.unsqueeze(1), i)
    return score.masked_fill(~sees, -torch.inf).softmax(-1).to(value.dtype) @ value


@contextlib.contextmanager
def gpu() -> Iterator[None]:
    """Within, "cuda" is this device, and a model that is loaded can be put on it."""
    from transformers import PreTrainedModel

    load, move = PreTrainedModel.from_pretrained.__func__, PreTrainedModel.to

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        _loading.append(True)
        try:
            return load(cls, *args, **kwargs)
        finally:
            _loading.pop()

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        move(self, *args, **kwargs)
        self.tie_weights()  # moved, a parameter is another object here
        return self

    run = torch.autograd._engine_run_backward

    def backwards(*args: Any, **kwargs: Any) -> Any:
        with _Functions():  # what is computed again meanwhile calls functions too
            return run(*args, **kwargs)

    answers = {
        "torch.cuda._lazy_init": None,
        "torch.cuda.synchronize": None,
        "torch.cuda.memory_allocated": 0,
        "torch.cuda.mem_get_info": (100 << 30, 140 << 30),
        "torch.cuda.is_bf16_supported": True,
        "torch.cuda.amp.common.amp_definitely_not_available": False,
        "polyalign.policies.language.flex.kernel": _flex,
        "polyalign.runs.plan._speed": 1e12,
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(name, return_value=answer))
        stack.enter_context(
            mock.patch.multiple(
                PreTrainedModel, from_pretrained=classmethod(from_pretrained), to=to
            )
        )
        stack.enter_context(mock.patch("torch.autograd._engine_run_backward", backwards))
        stack.enter_context(_Operations())
        stack.enter_context(_Functions())
        yield
