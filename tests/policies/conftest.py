"""Exact arithmetic for tiny models, so that layouts can be compared to 1e-10."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let float64 models compute in float64 throughout.

    `transformers` rounds norms and eager attention to float32 on the way, whatever the weights'
    dtype; the order of places in a sequence would then show at 1e-6.
    """
    softmax = torch.nn.functional.softmax

    def wide(x, dim=-1, dtype=None, **more):
        return softmax(x, dim=dim)

    monkeypatch.setattr(torch.nn.functional, "softmax", wide)
    to, floated = torch.Tensor.to, torch.Tensor.float

    def keep(self, *args, **kwargs):
        if self.dtype == torch.float64 and torch.float32 in (*args, kwargs.get("dtype")):
            return self
        return to(self, *args, **kwargs)

    def keep_float(self, *args, **kwargs):
        return self if self.dtype == torch.float64 else floated(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", keep)
    monkeypatch.setattr(torch.Tensor, "float", keep_float)
