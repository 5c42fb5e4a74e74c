"""FlexAttention's mask of blocks and its formula give what the CPU path gives, with gradients."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as torch_flex

from polyalign.policies.language import attention, flex

F64 = torch.float64


def packed(*groups: tuple[int, tuple[int, ...]]) -> attention.Packed:
    """Groups of a context and the lengths of its completions, one behind the other."""
    made, at = [], 0
    for n, lengths in groups:
        made.append(attention.Group(at, n, lengths))
        at += n + sum(lengths)
    return attention.Packed(tuple(made))


ROWS = {
    "short": packed((9, (4, 6)), (3, (5,)), (1, (1, 1, 2))),
    "longer than a block": packed((300, (90, 40)), (20, (10,)), (5, (200, 150, 3)), (129, (7,))),
    "one group": packed((128, (128, 128))),
}


@pytest.fixture
def on_cpu(monkeypatch):
    """PyTorch refuses gradients on a CPU, though its formula has them."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)


@pytest.mark.parametrize(
    ("name", "window", "cap"),
    [("short", None, None), ("short", 4, 3.0), ("longer than a block", 130, None)],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_values_and_gradients_are_those_of_the_path_for_cpus(on_cpu, name, window, cap):
    row = ROWS[name]
    made = torch.Generator().manual_seed(0)
    size = row.groups[-1].stop
    found = []
    inputs = [torch.randn(1, h, size, 8, generator=made, dtype=F64) for h in (4, 2, 2)]
    up = torch.randn(1, size, 4, 8, generator=made, dtype=F64)
    for compute in (flex.by_blocks, attention._by_group):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = compute(row, *leaves, 0.25, window, cap)
        found.append((out, *torch.autograd.grad(out, leaves, up)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


HEADERS = Path(sysconfig.get_path("include"), "Python.h")


@pytest.mark.skipif(
    shutil.which("g++") is None or not HEADERS.exists(),
    reason="the kernel for CPUs is compiled: it needs g++ and Python's headers",
)
def test_one_compiled_kernel_serves_all_rows(monkeypatch):
    """Compiled for a CPU, which computes values only: rows, windows and caps are its inputs."""
    compiled = flex.kernel(True)
    monkeypatch.setattr(flex, "kernel", lambda _: compiled)
    before = counters["stats"]["unique_graphs"]
    made = torch.Generator().manual_seed(0)
    rows = (
        (ROWS["longer than a block"], 130, 3.0),
        (packed((150, (40, 6)), (30, (5,))), 20, 3.0),
        (ROWS["one group"], 7, 5.0),
    )
    for row, window, cap in rows:
        size = row.groups[-1].stop
        inputs = [torch.randn(1, h, size, 16, generator=made) for h in (4, 2, 2)]
        with torch.no_grad():
            found = flex.by_blocks(row, *inputs, 0.25, window, cap)
            wanted = attention._by_group(row, *inputs, 0.25, window, cap)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == before + 1


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("window", [None, 4, 130])
def test_the_mask_of_blocks_is_the_one_that_pytorch_makes_of_all_places(name, window):
    row = ROWS[name]
    size = row.groups[-1].stop
    ours = flex._mask(row, window, torch.device("cpu"))
    theirs = torch_flex.create_block_mask(ours.mask_mod, None, None, size, size, device="cpu")
    assert ours.shape[-2:] == theirs.shape[-2:] == (size, size)
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    for part in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, part), getattr(theirs, part)), part
    seen = torch_flex.create_mask(ours.mask_mod, 1, 1, size, size, device="cpu")[0, 0]
    for group, sees in zip(row.groups, row.sees(window, torch.device("cpu")), strict=True):
        assert torch.equal(seen[group.start : group.stop, group.start : group.stop], sees)
        assert not seen[group.start : group.stop, : group.start].any()
