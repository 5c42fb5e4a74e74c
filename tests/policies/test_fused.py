"""Modules evaluated by ours and by themselves are the same functions, whatever their state."""

from __future__ import annotations

import copy

import pytest
import torch

from polyalign.policies.language import adapters, fused
from polyalign.policies.language.adapters import LoraSpec
from tests.policies import tiny
from tests.policies.test_architectures import rows_of, stirred

LORA = LoraSpec(r=2, alpha=4)


def both(policy, rows):
    """Log-probabilities and gradients by our evaluation and by the modules' own."""
    out = []
    for on in (True, False):
        fused.switch(policy.model, on)
        logp = policy.score(rows).logp
        slopes = torch.autograd.grad(
            (logp * torch.linspace(0, 1, logp.numel(), dtype=logp.dtype).view_as(logp)).sum(),
            [p for p in policy.model.parameters() if p.requires_grad],
            allow_unused=True,
            materialize_grads=True,
        )
        out.append((logp.detach(), *slopes))
    fused.switch(policy.model, True)
    return out


def same(policy, rows):
    for one, other in zip(*both(policy, rows), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_the_functions_are_the_modules_own(family, exact):
    policy = stirred(tiny.policy(family, lora=LORA))
    policy.trunk.layout()
    same(policy, rows_of())


def test_base_weights_and_biases_that_train_beside_an_adapter_get_their_gradients(exact):
    policy = stirred(tiny.policy("qwen2", lora=LORA))
    policy.trunk.layout()
    for parameter in policy.model.parameters():
        parameter.requires_grad_(True)
    same(policy, rows_of())


def test_an_adapter_that_is_off_folded_or_dropped_out_is_the_modules_own_business(exact):
    policy = stirred(tiny.policy("llama", lora=LORA))
    rows = rows_of()
    on = policy.score(rows).logp.detach()
    adapters.enable(policy.model, False)
    off = policy.score(rows).logp
    assert float((on - off.detach()).abs().max()) > 1e-3
    adapters.enable(policy.model, True)
    policy.peft.merge_adapter()
    torch.testing.assert_close(policy.score(rows).logp.detach(), on, rtol=0, atol=1e-10)
    policy.peft.unmerge_adapter()
    torch.testing.assert_close(policy.score(rows).logp.detach(), on, rtol=0, atol=1e-10)


def test_who_listens_to_a_layer_hears_it():
    policy = tiny.policy("llama", torch.float32, LORA)
    policy.trunk.layout()
    heard = []
    mlp = policy.model.model.layers[0].mlp
    mlp.down_proj.register_forward_hook(lambda *_: heard.append(1))
    policy.score(rows_of())
    assert heard


def test_a_copy_is_evaluated_with_its_own_weights(exact):
    policy = stirred(tiny.policy("llama", lora=LORA))
    rows = rows_of()
    before = policy.score(rows).logp.detach()
    other = copy.deepcopy(policy)
    stirred(other)
    assert torch.equal(policy.score(rows).logp.detach(), before)
    assert float((other.score(rows).logp.detach() - before).abs().max()) > 1e-3


def test_modules_that_differ_are_evaluated_by_themselves(caplog):
    policy = tiny.policy("llama", torch.float32)
    policy.model.model.norm.forward.eps = 1.0
    with caplog.at_level("INFO"):
        policy.trunk.layout()
    assert "its own modules, as ours differ" in caplog.text
    assert not policy.model.model.norm.forward.on


def test_what_a_layer_gives_may_be_changed_in_place(exact):
    """As Llama 4 does, which adds its experts' results to a gated layer's."""
    policy = stirred(tiny.policy("llama", lora=LORA))
    layer = policy.model.model.layers[0]
    x = torch.randn(1, 3, layer.mlp.gate_proj.in_features, dtype=torch.float64)
    for module in (layer.mlp, layer.self_attn.q_proj):
        grads = []
        for change in (lambda y: y.add_(1.0), lambda y: y + 1.0):
            leaf = x.clone().requires_grad_()
            grads.append(torch.autograd.grad(change(module(leaf)).square().sum(), leaf)[0])
        torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_a_norm_that_has_a_weight_without_reading_it_is_not_ours():
    class TinyRMSNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8))
            self.variance_epsilon = 1e-6

        def forward(self, x):
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    assert fused._norm(TinyRMSNorm()) is None
