"""Bases in 4 and 8 bits: the numbers are those of a whole model with the same, rounded weights."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from polyalign.errors import ModelError
from polyalign.policies.language import quantised
from polyalign.policies.language.adapters import LoraSpec
from polyalign.policies.language.merge import merge
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.protocols import Sampling
from polyalign.types import Rows
from tests.policies import tiny
from tests.policies.test_architectures import gradients, rows_of, stirred
from tests.policies.test_fused import same

LORA = LoraSpec(r=2, alpha=4)
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="needs bitsandbytes: pip install 'polyalign[quantized]'",
)
BITS = pytest.mark.parametrize("bits", ["4bit", "8bit"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models with their tokenizer, by family."""
    made = {}
    for family in ("llama", "gpt2", "qwen2"):
        folder = tmp_path_factory.mktemp("quantised") / family
        tiny.model(family, torch.float32).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        made[family] = folder
    return made


def opened(folder, bits, **more):
    policy = LanguagePolicy.from_pretrained(
        folder, lora=LORA, quantize=bits, dtype="float32", device="cpu", **more
    )
    return stirred(policy)


def short(n: int = 340):
    rows = rows_of([(7, (5, 9, 1)), (12, (4,)), (1, (6, 6))])
    assert int(rows.steps.max()) < n
    return rows


def numpy_weight(weight: torch.Tensor, bits: str) -> torch.Tensor:
    """The weight [O, I] rounded by hand: absolute maxima of rows, or of 64 numbers for nf4."""
    if bits == "8bit":
        # The library rounds in float16.
        half = weight.half().float()
        scale = half.abs().amax(1, keepdim=True)
        return torch.round(half * (127.0 / scale)) * scale / 127
    table = torch.tensor(
        [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
         0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
    )  # fmt: skip
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / scale).unsqueeze(-1).sub(table).abs().argmin(-1)
    return (table[nearest] * scale).reshape(weight.shape)


@needs_library
@BITS
def test_packed_weights_are_the_rounded_ones_and_the_head_stays_whole(folders, bits):
    whole = LanguagePolicy.from_pretrained(folders["llama"], dtype="float32", frozen=True)
    packed = LanguagePolicy.from_pretrained(
        folders["llama"], dtype="float32", quantize=bits, frozen=True
    )
    layers = dict(packed.model.named_modules())
    seen = 0
    for name, layer in whole.model.named_modules():
        if type(layer) is torch.nn.Linear and name != "lm_head":
            found = layers[name].packed.wide(torch.float32)
            by_hand = numpy_weight(layer.weight.detach(), bits)
            # The scales of 4 bits are rounded to 8 bits themselves.
            room = 0.02 if bits == "4bit" else 2e-3
            scale = float(layer.weight.detach().abs().max())
            assert float((found - by_hand).abs().max()) <= room * scale
            seen += 1
    assert seen == 14
    assert type(layers["lm_head"]) is torch.nn.Linear
    told = quantised.told(packed.model)
    assert f"in {bits[0]} bits" in told
    assert quantised.numbers(packed.model) == sum(p.numel() for p in whole.model.parameters())


@needs_library
@BITS
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_scores_and_gradients_are_those_of_a_whole_model_with_these_weights(
    folders, bits, family, exact
):
    """In float64: packed and fused against widened, plain layers."""
    policy, plain = (opened(folders[family], bits) for _ in range(2))
    for one in (policy, plain):
        one.model.double()
    quantised.widen(plain.model, torch.float64)
    rows = short()
    assert policy.trunk.layout(rows) == "packed"
    ours, hand = policy.score(rows).logp, plain.score(rows).logp
    torch.testing.assert_close(ours, hand, rtol=0, atol=1e-10)
    for one, other in zip(gradients(policy, ours), gradients(plain, hand), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@needs_library
def test_our_evaluation_of_packed_layers_is_pefts(folders, exact):
    policy = opened(folders["llama"], "4bit")
    policy.model.double()
    policy.trunk.layout()
    same(policy, short())


@needs_library
@BITS
def test_a_row_in_few_bits_does_not_depend_on_its_neighbours(folders, bits):
    policy = opened(folders["llama"], bits)
    rows = short()
    together = policy.score(rows).logp
    for i in range(len(rows)):
        alone = policy.score(rows.take(torch.tensor([i]))).logp[0]
        torch.testing.assert_close(together[i, : len(alone)], alone, rtol=0, atol=1e-5)


@needs_library
def test_the_backward_pass_keeps_no_wide_weight(folders):
    policy = opened(folders["llama"], "4bit")
    policy.trunk.layout()
    wide = {
        (m.out_features, m.in_features)
        for m in policy.model.modules()
        if isinstance(m, quantised.QuantisedLinear)
    }
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape), lambda x: x):
        policy.score(short())
    assert kept
    assert not wide & {tuple(shape) for shape in kept}


@needs_library
@BITS
def test_sampled_log_probabilities_are_those_of_scoring(folders, bits):
    policy = opened(folders["llama"], bits)
    drawn = policy.sample(["the cat", "a prompt"], 3, Sampling(max_steps=6), list(range(6)))
    rows = Rows.collate(list(drawn.rows))
    with torch.no_grad():
        again = policy.score(rows).logp
    torch.testing.assert_close(drawn.logp, again.float(), rtol=0, atol=1e-4)


@needs_library
@BITS
def test_an_adapter_remembers_how_its_base_was_held(folders, bits, tmp_path):
    policy = opened(folders["llama"], bits)
    policy.save(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/polyalign.json").read_text()) == {"quantize": bits}
    again = LanguagePolicy.from_pretrained(tmp_path / "adapter", dtype="float32")
    assert again.quantize == bits
    rows = short()
    assert torch.equal(again.score(rows).logp, policy.score(rows).logp)
    constant = again.freeze()
    assert torch.equal(constant.score(rows).logp, policy.score(rows).logp)


@needs_library
@BITS
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merging_folds_the_adapter_into_the_weights_it_was_trained_on(
    folders, bits, family, tmp_path
):
    policy = opened(folders[family], bits)
    policy.save(tmp_path / "adapter")
    gap = merge(tmp_path / "adapter", tmp_path / "merged")
    assert gap < 1e-3
    merged = LanguagePolicy.from_pretrained(tmp_path / "merged", dtype="float32", frozen=True)
    assert quantised.told(merged.model) is None
    rows = short()
    torch.testing.assert_close(merged.score(rows).logp, policy.score(rows).logp, rtol=0, atol=1e-3)


@needs_library
def test_a_folder_that_is_packed_already_loads_as_it_is(folders, tmp_path):
    from transformers import AutoModelForCausalLM

    for bits in ("4bit", "8bit"):
        folder = tmp_path / bits
        model = AutoModelForCausalLM.from_pretrained(
            folders["llama"], dtype=torch.float32, **quantised.options(bits, torch.float32, "cpu")
        )
        model.save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        assert quantised.method_of(folder) == "bitsandbytes"
        stored, packed = opened(folder, None), opened(folders["llama"], bits)
        rows = short()
        torch.testing.assert_close(
            stored.score(rows).logp, packed.score(rows).logp, rtol=0, atol=1e-5
        )
        with pytest.raises(ModelError, match="quantised already"):
            opened(folder, "4bit")
        with pytest.raises(ModelError, match="only adapters on them"):
            LanguagePolicy.from_pretrained(folder)


def test_what_cannot_be_is_refused_in_a_sentence(folders):
    with pytest.raises(ModelError, match="only adapters on them"):
        LanguagePolicy.from_pretrained(folders["llama"], quantize="4bit")
    with pytest.raises(ModelError, match="cannot compute in float64"):
        LanguagePolicy.from_pretrained(
            folders["llama"], quantize="4bit", lora=LORA, dtype="float64"
        )


def test_without_the_library_the_mend_is_its_installation(folders, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "bitsandbytes" else find(n, *a)
    )
    with pytest.raises(ModelError, match=r"pip install 'polyalign\[quantized\]'"):
        LanguagePolicy.from_pretrained(folders["llama"], quantize="8bit", lora=LORA)


@pytest.mark.parametrize(
    ("method", "package"), [("gptq", "gptqmodel"), ("awq", "gptqmodel"), ("hqq", "hqq")]
)
def test_a_folder_of_another_library_asks_for_that_library(
    folders, tmp_path, method, package, monkeypatch
):
    import shutil

    folder = tmp_path / method
    shutil.copytree(folders["llama"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == package else find(n, *a)
    )
    with pytest.raises(ModelError, match=f"pip install '{package}'"):
        LanguagePolicy.from_pretrained(folder, lora=LORA)
