"""What runs on a GPU: scores, samples, every kind of run. Each also on a device that is not there.

On that one (:mod:`tests.elsewhere`) no devices mix and no kernel of the CPU is called; what only a
GPU can show, its kernels in bfloat16, is skipped without one.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from polyalign import api
from polyalign.errors import Interrupted
from polyalign.policies.language import attention, flex
from polyalign.policies.language.adapters import LoraSpec
from polyalign.policies.language.logits import Head
from polyalign.policies.language.logprobs import token_quantities
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.protocols import Sampling
from polyalign.runs.folder import FolderHooks
from polyalign.types import Rows
from tests.elsewhere import gpu
from tests.policies.test_bfloat16 import rows
from tests.policies.test_flex import ROWS
from tests.runs.kit import rows_without_time, write_judge, write_pairs, write_prompts
from tests.runs.test_every_method import row


@pytest.fixture(autouse=True, params=[pytest.param("gpu", marks=pytest.mark.gpu), "elsewhere"])
def device(request, tiny_llama):
    if request.param == "elsewhere":
        if torch.cuda.is_available():
            pytest.skip("There is a GPU here, which shows more.")
        with gpu():
            yield "cuda"
    elif torch.cuda.is_available():
        yield "cuda"
    else:
        pytest.skip("There is no CUDA device here.")


@pytest.fixture
def needs_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("There is no CUDA device here.")


@pytest.mark.usefixtures("needs_a_gpu")
def test_a_policy_is_on_the_gpu_unless_it_is_told_otherwise(tiny_llama):
    policy = LanguagePolicy.from_pretrained(tiny_llama, lora=LoraSpec(r=4))
    assert policy.device.type == "cuda"


def test_a_policy_on_the_gpu_is_in_bfloat16_and_packs_its_rows(tiny_llama, device):
    policy = LanguagePolicy.from_pretrained(tiny_llama, lora=LoraSpec(r=4), device=device)
    assert policy.trunk.dtype == torch.bfloat16
    assert policy.trunk.layout() == "packed"  # by FlexAttention


@pytest.mark.parametrize("lora", [LoraSpec(r=4), None])
def test_scores_are_those_of_the_cpu_up_to_rounding(tiny_llama, lora, device):
    found = []
    for place, dtype in ((device, "bfloat16"), (device, "float32"), ("cpu", "float32")):
        policy = LanguagePolicy.from_pretrained(tiny_llama, lora=lora, device=place, dtype=dtype)
        found.append(policy.score(rows()).logp.detach().cpu())
    assert float((found[0] - found[2]).abs().max()) < 0.05
    assert float((found[1] - found[2]).abs().max()) < 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_cpu_up_to_rounding(tiny_llama, device, checkpointing):
    found = []
    for place in (device, "cpu"):
        policy = LanguagePolicy.from_pretrained(
            tiny_llama, device=place, dtype="float32", checkpointing=checkpointing
        )
        policy.score(rows()).logp.sum().backward()
        found.append({n: p.grad.cpu() for n, p in policy.trainable().items()})
    for name, one in found[1].items():
        scale = float(one.abs().max()) + 1e-6
        assert float((found[0][name] - one).abs().max()) < 1e-2 * scale, name


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(("window", "cap"), [(None, None), (130, 3.0)])
def test_the_kernel_gives_the_values_and_gradients_of_a_mask(name, window, cap):
    packed = ROWS[name]
    made = torch.Generator().manual_seed(0)
    size = packed.groups[-1].stop
    inputs = [torch.randn(1, h, size, 64, generator=made).cuda() for h in (4, 2, 2)]
    up = torch.randn(1, size, 4, 64, generator=made).cuda()
    found = []
    for compute in (flex.by_blocks, attention._by_group):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = compute(packed, *leaves, 0.125, window, cap)
        found.append((out, *torch.autograd.grad(out, leaves, up)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.cpu(), other.cpu(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("want", [frozenset(), frozenset({"entropy"})])
@pytest.mark.parametrize("trains", [False, True])
def test_a_head_that_multiplies_narrow_numbers_gives_the_float32_of_them(trains, want):
    """Products of bfloat16 are exact in float32; only what is multiplied backwards is rounded."""
    made = torch.Generator().manual_seed(0)
    drawn = [torch.randn(*size, generator=made).bfloat16() for size in ((9, 16), (5000, 16))]
    targets = torch.randint(0, 5000, (9,), generator=made)
    found = []
    for place, narrow in (("cuda", torch.bfloat16), ("cpu", None)):
        states = drawn[0].to(place, narrow or torch.float32, copy=True).requires_grad_()
        weight = drawn[1].to(place, torch.float32, copy=True).requires_grad_(trains)
        bias = torch.linspace(-1, 1, 5000).to(place)
        head = Head(weight, bias, 0.5, 30.0, narrow)
        told = token_quantities(states, head, targets.to(place), want)
        leaves = [states, weight] if trains else [states]
        slopes = torch.autograd.grad(sum(x.sum() for x in told.values()), leaves)
        found.append(([*told.values()], [x.float() for x in slopes]))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.cpu(), other, rtol=1e-5, atol=1e-4)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert float((one.cpu() - other).norm()) < 0.01 * float(other.norm())


@pytest.mark.parametrize("law", [{}, {"temperature": 0.7, "top_p": 0.9, "top_k": 20}])
def test_what_is_sampled_has_the_probability_that_scoring_gives_it(tiny_llama, device, law):
    policy = LanguagePolicy.from_pretrained(
        tiny_llama, lora=LoraSpec(r=4), device=device, dtype="float32"
    )
    drawn = policy.sample(["Say something"], 4, Sampling(max_steps=8, **law), [1, 2, 3, 4])
    made = Rows.collate(drawn.rows)
    again = policy.score(made).logp.detach().cpu()
    if not law:
        assert float((again - drawn.old)[made.mask].abs().max()) < 1e-3
    assert bool((drawn.old[made.mask] <= 0).all())


@pytest.mark.parametrize("full", [True, False])
def test_a_run_learns_in_bfloat16(tiny_llama, tmp_path, full, device):
    data = write_pairs(tmp_path / "pairs.jsonl", 16)
    said = {"batch": 8, "epochs": 3, "lr": 2e-2, "samples": 0, "full": full}
    said["checkpointing"] = full
    out = tmp_path / "run"
    api.train("dpo", model=str(tiny_llama), data=[str(data)], output=out, device=device, **said)
    losses = [row["loss"] for row in rows_without_time(tmp_path / "run")]
    assert losses[0] == pytest.approx(0.6931, abs=1e-2)
    assert losses[-1] < 0.6


KINDS = {
    "tdpo": "pairs",  # the law of a live reference
    "tr-dpo": "pairs",  # a reference that moves
    "kto": "binary",  # statistics of the batch
    "oreo": "scored",  # updates together, a value network
    "iopo": "quadruples",
    "sft": "demonstrations",
}


@pytest.mark.parametrize("method", KINDS)
def test_every_kind_of_update_runs(tiny_llama, tmp_path, device, method):
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(row(KINDS[method], i)) for i in range(8)), "utf-8")
    said = {"batch": 4, "max_steps": 2, "samples": 0, "eval_data": str(data), "eval_every": 2}
    out = tmp_path / "run"
    run = api.train(
        method, model=str(tiny_llama), data=[str(data)], output=out, device=device, **said
    )
    found = run.metrics
    assert {x["split"] for x in found} == {"train", "eval"}
    numbers = [v for x in found for v in x.values() if isinstance(v, float)]
    assert all(map(math.isfinite, numbers))


def test_a_run_that_samples_goes_on_as_if_it_had_not_stopped(
    tiny_llama, tmp_path, device, monkeypatch
):
    data = write_prompts(tmp_path / "prompts.jsonl", 4)
    judge = f"{write_judge(tmp_path / 'judge.py')}:score"
    said = {"batch": 2, "lr": 1e-2, "samples": 0, "max_new_tokens": 6, "max_steps": 2}

    def run(name: str) -> Path:
        out = tmp_path / name
        api.train(
            "grpo", model=str(tiny_llama), data=[str(data)], output=out, judge=judge, device=device,
            **said,
        )  # fmt: skip
        return out

    whole = run("whole")
    boundary = FolderHooks.boundary

    def stop(hooks: FolderHooks, session: Any) -> None:
        hooks.stopping = "the test"
        boundary(hooks, session)

    with monkeypatch.context() as stopped:
        stopped.setattr(FolderHooks, "boundary", stop)
        with pytest.raises(Interrupted):
            run("cut")
    api.resume(tmp_path / "cut")
    (one,), (other,) = ((out / "final").glob("*.safetensors") for out in (whole, tmp_path / "cut"))
    torch.testing.assert_close(load_file(one), load_file(other), rtol=1e-3, atol=1e-4)
