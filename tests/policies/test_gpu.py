"""What only a GPU can show: scores, runs, samples and the FlexAttention kernel in bfloat16."""

from __future__ import annotations

import pytest
import torch

from polyalign import api
from polyalign.policies.language import attention, flex
from polyalign.policies.language.adapters import LoraSpec
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.protocols import Sampling
from polyalign.types import Rows
from tests.policies.test_bfloat16 import rows
from tests.policies.test_flex import ROWS
from tests.runs.kit import rows_without_time, write_pairs

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("There is no CUDA device here.")


def test_a_policy_is_on_the_gpu_in_bfloat16_unless_it_is_told_otherwise(tiny_llama):
    policy = LanguagePolicy.from_pretrained(tiny_llama, lora=LoraSpec(r=4))
    assert policy.device.type == "cuda"
    assert policy.trunk.dtype == torch.bfloat16
    assert policy.trunk.layout() == "packed"  # by FlexAttention


@pytest.mark.parametrize("lora", [LoraSpec(r=4), None])
def test_scores_are_those_of_the_cpu_up_to_rounding(tiny_llama, lora):
    found = []
    for device, dtype in (("cuda", "bfloat16"), ("cuda", "float32"), ("cpu", "float32")):
        policy = LanguagePolicy.from_pretrained(tiny_llama, lora=lora, device=device, dtype=dtype)
        found.append(policy.score(rows()).logp.detach().cpu())
    assert float((found[0] - found[2]).abs().max()) < 0.05
    assert float((found[1] - found[2]).abs().max()) < 1e-3


def test_gradients_are_those_of_the_cpu_up_to_rounding(tiny_llama):
    found = []
    for device in ("cuda", "cpu"):
        policy = LanguagePolicy.from_pretrained(tiny_llama, device=device, dtype="float32")
        policy.score(rows()).logp.sum().backward()
        found.append({n: p.grad.cpu() for n, p in policy.trainable().items()})
    for name, one in found[1].items():
        scale = float(one.abs().max()) + 1e-6
        assert float((found[0][name] - one).abs().max()) < 1e-2 * scale, name


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(("window", "cap"), [(None, None), (130, 3.0)])
def test_the_compiled_kernel_gives_the_values_and_gradients_of_a_mask(name, window, cap):
    row = ROWS[name]
    made = torch.Generator().manual_seed(0)
    size = row.groups[-1].stop
    inputs = [torch.randn(1, h, size, 64, generator=made).cuda() for h in (4, 2, 2)]
    up = torch.randn(1, size, 4, 64, generator=made).cuda()
    found = []
    for compute in (flex.by_blocks, attention._by_group):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = compute(row, *leaves, 0.125, window, cap)
        found.append((out, *torch.autograd.grad(out, leaves, up)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_what_is_sampled_has_the_probability_that_scoring_gives_it(tiny_llama):
    policy = LanguagePolicy.from_pretrained(tiny_llama, lora=LoraSpec(r=4))
    drawn = policy.sample(["Say something"], 4, Sampling(max_steps=8), [1, 2, 3, 4])
    made = Rows.collate(drawn.rows)
    again = policy.score(made).logp.detach().cpu()
    assert float((again - drawn.old)[made.mask].abs().max()) < 0.1


@pytest.mark.parametrize("full", [True, False])
def test_a_run_learns_in_bfloat16(tiny_llama, tmp_path, full):
    data = write_pairs(tmp_path / "pairs.jsonl", 16)
    said = {"batch": 8, "epochs": 4, "lr": 1e-2, "samples": 1, "max_new_tokens": 6, "full": full}
    api.train("dpo", model=str(tiny_llama), data=[str(data)], output=tmp_path / "run", **said)
    losses = [row["loss"] for row in rows_without_time(tmp_path / "run")]
    assert losses[0] == pytest.approx(0.6931, abs=1e-2)
    assert losses[-1] < 0.5
