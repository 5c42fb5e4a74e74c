"""Sampling by vLLM: by a stand-in everywhere, by the package itself where it is installed."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from polyalign.api import sample
from polyalign.errors import ModelError, NumericsError, OptionError
from polyalign.policies.language.adapters import LoraSpec
from polyalign.policies.language.fold import weights
from polyalign.policies.language.law import draw
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.policies.language.vllm_sampler import sampler_of
from polyalign.protocols import Sampling
from polyalign.types import Rows
from tests.policies import stand_in_vllm, tiny

CONTEXTS = ["the cat", "Question: what is the answer? Answer:", "a"]
REAL = importlib.util.find_spec("vllm") is not None


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", stand_in_vllm.module())
    return stand_in_vllm.LLM


def moved(policy):
    """The policy after some training, so that no adapter is zero."""
    made = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=made).to(parameter)
    return policy


def served(policy):
    policy.sampler = sampler_of("vllm")
    return policy


def sampled(policy, n=2, contexts=CONTEXTS, seeds=None, **how):
    law = Sampling(**({"max_steps": 8} | how))
    return policy.sample(contexts, n, law, seeds or range(len(contexts) * n))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("lora", [None, LoraSpec(r=4)])
@pytest.mark.parametrize("how", [{}, {"temperature": 0.7, "top_k": 20, "top_p": 0.8}])
def test_what_is_returned_is_the_law_that_drew_and_the_policys_own(family, lora, how, stand_in):
    policy = served(moved(tiny.policy(family, lora=lora)))
    rollout = sampled(policy, **how)
    rows = Rows.collate(rollout.rows)
    logp = policy.score(rows).logp.detach()
    torch.testing.assert_close(rollout.logp.double(), logp.double(), rtol=0, atol=1e-4)
    for i, row in enumerate(rollout.rows):
        ids = torch.tensor([[*row.context, *row.steps.tolist()]])
        logits = policy.model(ids).logits.detach()[0, len(row.context) - 1 : -1].float()
        for t, token in enumerate(row.steps.tolist()):
            # The law by our own sampler: every uniform number that draws this token agrees.
            law = Sampling(**({"max_steps": 8} | how))
            grid = torch.linspace(0, 0.999, 400, dtype=torch.float64)
            drawn, old, _ = draw(logits[t].expand(400, -1), grid, law)
            hit = (drawn == token).nonzero()
            if len(hit):
                assert float(rollout.old[i, t]) == pytest.approx(old[hit[0]].item(), abs=1e-4)


def test_weights_are_sent_anew_for_every_draw(stand_in):
    policy = served(tiny.policy(lora=LoraSpec(r=4)))
    first = sampled(policy, n=1)
    same = sampled(policy, n=1)
    assert [r.steps.tolist() for r in first.rows] == [r.steps.tolist() for r in same.rows]
    moved(policy)
    after = sampled(policy, n=1)
    assert not torch.equal(after.logp, first.logp)
    (engine,) = stand_in.made
    assert engine.loads == engine.resets == 3


def test_a_frozen_policy_is_drawn_from_by_the_same_engine_as_it_was(stand_in):
    policy = served(moved(tiny.policy(lora=LoraSpec(r=4))))
    before = sampled(policy)
    frozen = policy.freeze()
    moved(policy)
    again = sampled(frozen)
    assert torch.equal(before.old, again.old)
    assert len(stand_in.made) == 1


def test_the_weights_that_are_sent_are_those_of_the_merged_model(stand_in):
    policy = moved(tiny.policy("gpt2", lora=LoraSpec(r=4)))
    sent = dict(weights(policy.model))
    merged = policy.peft.merge_and_unload().state_dict()
    for name, tensor in sent.items():
        torch.testing.assert_close(tensor, merged[name].to(tensor.dtype), rtol=0, atol=1e-6)
    assert set(merged) - set(sent) <= {"lm_head.weight"}


def test_an_engine_with_other_weights_draws_nothing(stand_in):
    policy = served(moved(moved(moved(tiny.policy()))))
    stand_in.deaf = True
    with pytest.raises(NumericsError, match="another law than the policy"):
        sampled(policy)


def test_the_greedy_draw_is_our_own_and_stops_where_ours_does(stand_in):
    policy = tiny.policy()
    policy.template.__dict__["stops"] = frozenset(range(0, 340, 9))
    own = sampled(policy, n=1, temperature=0)
    theirs = sampled(served(policy), n=1, temperature=0)
    assert [r.steps.tolist() for r in own.rows] == [r.steps.tolist() for r in theirs.rows]
    assert torch.equal(own.finished, theirs.finished)
    assert theirs.old.eq(0).all()
    torch.testing.assert_close(own.logp, theirs.logp, rtol=0, atol=1e-5)


def test_a_row_depends_on_its_seed_and_the_process_draws_on_as_before(stand_in):
    policy = served(tiny.policy())
    state = torch.random.get_rng_state()
    rollout = sampled(policy, n=2)
    assert torch.equal(state, torch.random.get_rng_state())
    turned = sampled(policy, n=2, contexts=CONTEXTS[::-1], seeds=[4, 5, 2, 3, 0, 1])
    rows = [row.steps.tolist() for row in rollout.rows]
    assert rows == [turned.rows[i].steps.tolist() for i in (4, 5, 2, 3, 0, 1)]
    assert rows[0] != rows[1]


def test_what_vllm_cannot_serve_is_one_sentence(stand_in, monkeypatch):
    def broken(self, **options):
        raise ValueError("Model architectures ['Strange'] are not supported for now.\nmore")

    monkeypatch.setattr(stand_in, "__init__", broken)
    with pytest.raises(ModelError, match="vLLM cannot serve this model .*'Strange'"):
        sampled(served(tiny.policy()))


def test_adapters_that_are_no_plain_product_are_refused():
    from peft import LoraConfig, get_peft_model

    inner = tiny.policy().model
    wrapped = get_peft_model(inner, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    with pytest.raises(ModelError, match="cannot be folded"):
        list(weights(wrapped.get_base_model()))


def test_adapters_with_copies_of_modules_are_refused():
    from peft import LoraConfig, get_peft_model

    more = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    wrapped = get_peft_model(tiny.policy().model, LoraConfig(r=2, **more))
    with pytest.raises(ModelError, match="a copy of its own of lm_head"):
        list(weights(wrapped.get_base_model()))


def test_an_evaluation_draws_with_it_and_refuses_it_where_nothing_is_drawn(stand_in, tmp_path):
    from polyalign.api import evaluate
    from tests.conftest import make_tiny_llama
    from tests.runs.kit import write_judge, write_pairs, write_prompts

    model = make_tiny_llama(tmp_path / "model")
    pairs, prompts = write_pairs(tmp_path / "a.jsonl", 4), write_prompts(tmp_path / "b.jsonl", 2)
    judge = f"{write_judge(tmp_path / 'judge.py')}:score"
    with pytest.raises(OptionError, match="sampler=vllm has no effect, as nothing is sampled"):
        evaluate(model, pairs, sampler="vllm")
    found = evaluate(model, prompts, judge=judge, sampler="vllm", max_new_tokens=4)
    assert found["judge"]["sampling"]["n"] == 1
    (engine,) = stand_in.made
    assert engine.loads == 1


def test_the_package_is_asked_for_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    with pytest.raises(OptionError, match="needs the package vllm.*pip install 'polyalign"):
        sample(tmp_path / "no-such-model", ["Hi"], sampler="vllm")


def test_other_samplers_and_options_that_do_not_go_with_it(stand_in):
    assert sampler_of(None) is None
    assert sampler_of("own") is None
    with pytest.raises(OptionError, match="no sampler 'vlm'. Did you mean vllm"):
        sampler_of("vlm")
    with pytest.raises(OptionError, match="does not go with quantize=4bit"):
        sampler_of("vllm", quantize="4bit")


@pytest.mark.skipif(not REAL, reason="needs vllm (pip install 'polyalign[vllm]')")
def test_the_package_itself_draws_from_the_policy(smollm2):
    policy = served(LanguagePolicy.from_pretrained(smollm2.path, lora=LoraSpec(), max_length=256))
    prompts = [({"role": "user", "content": x},) for x in ("Name two colours.", "Say hi.")]
    for _ in range(2):
        rollout = sampled(policy, contexts=prompts, max_steps=12)
        torch.testing.assert_close(rollout.old, rollout.logp, rtol=0, atol=1e-3)
        cut = sampled(policy, contexts=prompts, temperature=0.7, top_k=20, top_p=0.9)
        again = sampled(policy, contexts=prompts, temperature=0.7, top_k=20, top_p=0.9)
        assert torch.equal(cut.old, again.old)
        assert cut.old.sum() > cut.logp.sum()
        moved(policy)
