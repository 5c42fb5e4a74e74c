"""A tree of tensors, numbers and containers, as a safetensors file and JSON.

JSON carries what is not a tensor exactly: ints of any size, floats to the bit (those that are
not finite in hexadecimal), keys of any plain type, tuples apart from lists. Nothing is pickled.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from polyalign.errors import RunError

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
"""The types that every version of the safetensors format names; others are stored as bytes."""


class Encoder:
    """Splits a tree into JSON (:meth:`structure`) and named tensors (``tensors``).

    A tensor that stands at several places of the tree is stored once, and is one tensor again
    after reading. ``raw`` names the tensors that are stored as bytes.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def structure(self, value: Any, where: str = "") -> Any:
        """The JSON for ``value``; ``where`` is its path in the tree. Raises RunError."""
        if isinstance(value, Tensor):
            return self._tensor(value, where)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            number = float(value)
            return number if math.isfinite(number) else {"float": struct.pack(">d", number).hex()}
        if isinstance(value, Mapping):
            if all(isinstance(key, str) for key in value):
                return {"dict": {k: self.structure(v, _at(where, k)) for k, v in value.items()}}
            return {
                "items": [
                    [self.structure(k, _at(where, k)), self.structure(v, _at(where, k))]
                    for k, v in value.items()
                ]
            }
        if isinstance(value, list):
            return [self.structure(v, _at(where, i)) for i, v in enumerate(value)]
        if isinstance(value, tuple) and not hasattr(value, "_fields"):
            return {"tuple": [self.structure(v, _at(where, i)) for i, v in enumerate(value)]}
        raise RunError(
            f"A checkpoint cannot hold the {type(value).__name__} at {where or 'its root'}.",
            "Keep state as tensors, numbers, strings, None, lists, tuples and dictionaries.",
        )

    def _tensor(self, tensor: Tensor, where: str) -> dict[str, Any]:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            raise RunError(
                f"A checkpoint cannot hold the tensor at {where or 'its root'}: "
                f"it is not dense ({tensor.layout}, {tensor.dtype}, {tensor.device}).",
                "Keep state as dense tensors.",
            )
        tensor = tensor.detach()
        kind = (tensor.device, tensor.dtype, tensor.is_conj(), tensor.is_neg())
        same = (tensor.data_ptr(), tensor.shape, tensor.stride(), *kind)
        if tensor.numel() and same in self._known:
            return self._known[same]
        name = where or "tensor"
        while name in self.tensors or name == "__metadata__":  # which the format reserves
            name += "'"
        self.tensors[name] = tensor
        node: dict[str, Any] = {"tensor": name}
        if tensor.dtype not in NAMES:
            dtype = str(tensor.dtype).removeprefix("torch.")
            node |= {"dtype": dtype, "shape": list(tensor.shape)}
        self._known[same] = node
        return node

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The safetensors file, piece by piece: one tensor at a time is copied, if at all."""
        order = sorted(self.tensors, key=lambda name: -self.tensors[name].element_size())
        header: dict[str, Any] = {}
        offset = 0
        for name in order:
            tensor = self.tensors[name]
            size = tensor.numel() * tensor.element_size()
            named = tensor.dtype in NAMES
            header[name] = {
                "dtype": NAMES[tensor.dtype] if named else "U8",
                "shape": list(tensor.shape) if named else [size],
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        yield struct.pack("<Q", len(text)) + text
        for name in order:
            if self.tensors[name].numel():
                yield _bytes(self.tensors[name])


def _bytes(tensor: Tensor) -> memoryview:
    plain = tensor.resolve_conj().resolve_neg().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


def _at(where: str, key: Any) -> str:
    return f"{where}/{key}" if where else str(key)


def decode(node: Any, tensor: Callable[[str], Tensor]) -> Any:
    """The tree whose :meth:`Encoder.structure` is ``node``; ``tensor`` reads one by name.

    Raises KeyError, TypeError or ValueError when ``node`` is no such structure.
    """
    seen: dict[str, Tensor] = {}

    def read(node: Any) -> Any:
        if isinstance(node, list):
            return [read(child) for child in node]
        if not isinstance(node, dict):
            return node
        if "tensor" in node:
            name = node["tensor"]
            if name not in seen:
                found = tensor(name)
                if "dtype" in node:
                    dtype = getattr(torch, node["dtype"])
                    if not isinstance(dtype, torch.dtype):
                        raise ValueError(f"{node['dtype']} is not a type of numbers")
                    found = found.view(dtype).reshape(node["shape"])
                seen[name] = found
            return seen[name]
        if "float" in node:
            return struct.unpack(">d", bytes.fromhex(node["float"]))[0]
        if "dict" in node:
            return {key: read(child) for key, child in node["dict"].items()}
        if "items" in node:
            return {read(key): read(child) for key, child in node["items"]}
        return tuple(read(child) for child in node["tuple"])

    return read(node)
