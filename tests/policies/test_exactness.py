"""What a batch's shape, its padding, configured dropout and narrow numbers must not change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polyalign.engine.scoring import Cast
from polyalign.engine.step import Engine
from polyalign.feedback.records import Pair
from polyalign.feedback.units import assemble, make_units
from polyalign.methods import get
from polyalign.policies.language.adapters import LoraSpec
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.protocols import Sampling
from polyalign.recipe import Update
from polyalign.types import Rows
from tests.policies import tiny

PAIRS = [
    Pair(key="a", prompt="the cat", chosen=" sat", rejected=" ran after the dog and the cat"),
    Pair(key="b", prompt="Question: what is the answer?", chosen=" yes or no", rejected=" no"),
    Pair(key="c", prompt="the cat", chosen=" ran after the dog, over there", rejected=""),
]
MEANS = {"ipo": {}, "simpo": {}, "orpo": {}, "dpo": {}}


def moved(policy: LanguagePolicy, seed: int = 0) -> LanguagePolicy:
    torch.manual_seed(seed)
    policy.load({n: p + 0.2 * torch.randn_like(p) for n, p in policy.tensors().items()})
    return policy


def rows_of(policy: LanguagePolicy) -> Rows:
    return Rows.collate([policy.encode(p.prompt, x) for p in PAIRS for x in (p.chosen, p.rejected)])


def step(policy: LanguagePolicy, reference: LanguagePolicy, id: str, pairs: list[Pair]) -> float:
    (update,) = get(id)(**MEANS[id]).stages[0].updates
    units = make_units(pairs, range(len(pairs)), update.objective.needs, 0, 0)
    engine = Engine(Cast(policy, {"ref": reference}, {}))
    return engine.evaluate(Update(update.objective), assemble(units, policy.encode), {}).loss


@pytest.mark.parametrize("id", MEANS)
def test_t5_t18_a_loss_over_lengths_is_the_same_packed_padded_and_alone(id, exact):
    """A divisor is the answer's own length, whatever shares its row or stands beside it."""
    policy = tiny.policy()
    reference = policy.freeze()
    moved(policy)
    assert policy.trunk.layout() == "packed"
    packed = step(policy, reference, id, PAIRS)
    policy.trunk._layout = reference.trunk._layout = "plain"
    assert step(policy, reference, id, PAIRS) == pytest.approx(packed, rel=1e-10)
    if id != "orpo":  # whose likelihood is over the tokens of the whole step
        alone = [step(policy, reference, id, [pair]) for pair in PAIRS]
        assert sum(alone) / len(alone) == pytest.approx(packed, rel=1e-10)


def test_t4_the_end_token_is_in_the_sum_and_in_the_length(exact):
    """Both sides of SimPO's average, from the model's own logits."""
    policy = tiny.policy()
    rewards = []
    for answer in (PAIRS[1].chosen, PAIRS[1].rejected):
        prompt = policy.template.ids(PAIRS[1].prompt)
        ids = [*prompt, *policy.template.ids(answer), policy.template.eos]
        law = policy.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        steps = range(len(prompt), len(ids))
        rewards.append(sum(float(law[t - 1, ids[t]].detach()) for t in steps) / len(steps))
    hyper = get("simpo")().hyper
    z = hyper["beta"] * (rewards[0] - rewards[1] - hyper["gamma_beta_ratio"])
    expected = float(-torch.nn.functional.logsigmoid(torch.tensor(z, dtype=torch.float64)))
    assert step(policy, policy.freeze(), "simpo", [PAIRS[1]]) == pytest.approx(expected, rel=1e-10)


def test_t12_whatever_stands_in_padding_changes_neither_scores_nor_gradients(exact):
    policy = tiny.policy()
    rows = rows_of(policy)
    assert not rows.mask.all()
    found = []
    for filler in (0, policy.template.eos, 339):
        steps = torch.where(rows.mask, rows.steps, filler)
        logp = policy.score(replace(rows, steps=steps)).logp
        found.append((logp, *torch.autograd.grad(logp.sum(), list(policy.trainable().values()))))
    for other in found[1:]:
        for one, two in zip(found[0], other):
            assert torch.equal(one, two)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_t35_dropout_that_the_base_is_configured_with_is_off(family, checkpointing):
    plain = tiny.policy(family, torch.float32)
    config = tiny.config(family)
    for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.5)
    model = type(plain.model)(config)
    model.load_state_dict(plain.model.state_dict())
    policy = LanguagePolicy(model.train(), tiny.tokenizer())
    if checkpointing:
        policy.trunk.checkpoint_layers()
    logp = policy.score(rows_of(policy)).logp
    torch.testing.assert_close(logp, plain.score(rows_of(plain)).logp, rtol=0, atol=1e-6)
    assert torch.equal(logp, policy.score(rows_of(policy)).logp)


def test_t35_dropout_that_an_adapter_was_trained_with_is_off(tmp_path: Path, tiny_llama: Path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    spec = LoraConfig(
        r=2, lora_alpha=8, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapped = get_peft_model(base, spec)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(tmp_path)
    policy = LanguagePolicy.from_pretrained(tmp_path)
    rows = rows_of(policy)
    logp = policy.score(rows).logp
    assert torch.equal(logp, policy.score(rows).logp)
    assert torch.equal(logp, policy.freeze().score(rows).logp)
    ids = torch.tensor([[*rows.contexts[0], *rows.steps[0][rows.mask[0]].tolist()]])
    with torch.no_grad():
        law = wrapped.eval()(ids).logits[0, len(rows.contexts[0]) - 1 : -1].log_softmax(-1)
    hand = law.gather(-1, rows.steps[0][rows.mask[0]].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(logp[0][rows.mask[0]].detach(), hand, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lora", [None, LoraSpec(r=2, alpha=4)], ids=["whole", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_t38_sampler_and_trainer_compute_in_the_same_numbers(dtype, lora, tiny_llama: Path):
    """Ratios on policy are one up to rounding; nothing is computed in a third precision."""
    policy = moved(LanguagePolicy.from_pretrained(tiny_llama, dtype=dtype, lora=lora))
    contexts = ["the cat", "Question: what is the answer?", "a"]
    rollout = policy.sample(contexts, 4, Sampling(max_steps=24), range(12))
    rows = Rows.collate(rollout.rows)
    logp = policy.score(rows).logp.detach()
    gap = torch.where(rows.mask, (logp - rollout.logp).abs(), 0.0)
    assert logp.dtype == rollout.logp.dtype == torch.float32
    assert float(gap.max()) < (1e-4 if dtype == "float32" else 0.1)
    # Rounding has no direction: sequences are not systematically likelier on either side.
    drift = torch.where(rows.mask, logp - rollout.logp, 0.0).sum() / rows.mask.sum()
    assert abs(float(drift)) < (1e-5 if dtype == "float32" else 0.01)
