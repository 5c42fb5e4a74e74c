"""States to save, and when two are the same."""

from __future__ import annotations

import math
import struct

import torch


def same(a: object, b: object) -> bool:
    """Equal bit for bit, in type, shape and order; NaN equals the NaN of its own bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        left, right = (x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
        return torch.equal(left, right)
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, dict):
        pairs = zip(a.items(), b.items())
        return len(a) == len(b) and all(same(k, m) and same(v, w) for (k, v), (m, w) in pairs)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


def state(step: int) -> dict:
    """A small state tree that differs in every part from step to step."""
    generator = torch.Generator().manual_seed(step)
    return {
        "policy": {
            "weight": torch.randn(7, 3, generator=generator),
            "half": torch.randn(5, generator=generator).bfloat16(),
        },
        "optimizer": {"state": {0: {"step": torch.tensor(float(step))}}, "groups": [{"lr": 0.1}]},
        "step": step,
        "best": math.inf,
        "betas": (0.9, 0.999),
    }
