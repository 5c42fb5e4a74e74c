"""Sampling: the law that draws, its log-probabilities, and what stops it."""

from __future__ import annotations

import pytest
import torch

from polyalign.errors import NumericsError, OptionError
from polyalign.policies.language import decode, generate
from polyalign.policies.language.adapters import LoraSpec
from polyalign.policies.language.law import draw
from polyalign.protocols import Sampling
from polyalign.types import Rows
from tests.policies import tiny

CONTEXTS = ["the cat", "Question: what is the answer? Answer:", "a", "the dog ran after the cat"]


def sampled(policy, contexts, n, seeds, **how):
    return policy.sample(contexts, n, Sampling(**({"max_steps": 12} | how)), seeds)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_log_probabilities_of_sampling_are_those_of_scoring(family, exact):
    policy = tiny.policy(family)
    rollout = sampled(policy, CONTEXTS, 3, range(12))
    rows = Rows.collate(rollout.rows)
    logp = policy.score(rows).logp
    torch.testing.assert_close(rollout.logp.double(), logp.detach(), rtol=0, atol=1e-5)
    assert torch.equal(rollout.old, rollout.logp)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_rows_draw_depends_on_its_seed_and_not_on_the_batch(family, exact):
    policy = tiny.policy(family)
    together = sampled(policy, CONTEXTS, 2, range(8), top_p=0.9)
    for i, context in enumerate(CONTEXTS):
        alone = sampled(policy, [context], 2, [2 * i, 2 * i + 1], top_p=0.9)
        for k in range(2):
            assert alone.rows[k].steps.equal(together.rows[2 * i + k].steps)
    other = sampled(policy, CONTEXTS, 2, range(100, 108), top_p=0.9)
    assert any(not a.steps.equal(b.steps) for a, b in zip(other.rows, together.rows))


def test_the_greedy_draw_is_the_models_own(exact):
    policy = tiny.policy()
    rollout = sampled(policy, CONTEXTS, 1, range(4), temperature=0)
    for row in rollout.rows:
        ids = torch.tensor([[*row.context, *row.steps.tolist()]])
        best = policy.model(ids).logits[0, len(row.context) - 1 : -1].argmax(-1)
        assert row.steps.equal(best)
    assert rollout.old.eq(0).all()
    assert rollout.logp.lt(0).any()


def test_rows_stop_at_the_end_token_and_say_so():
    policy = tiny.policy()
    stops = policy.template.stops
    policy.template.__dict__["stops"] = stops | frozenset(range(0, 340, 4))
    rollout = sampled(policy, CONTEXTS, 8, range(32), max_steps=6)
    lengths = [len(row.steps) for row in rollout.rows]
    assert min(lengths) < 6 == max(lengths)
    for row, finished in zip(rollout.rows, rollout.finished.tolist()):
        ended = [int(t) in policy.template.stops for t in row.steps]
        assert not any(ended[:-1])
        assert finished == ended[-1]
        assert finished or len(row.steps) == 6
        assert row.mask.all()
    rows = Rows.collate(rollout.rows)
    assert rollout.logp.shape == rows.mask.shape
    torch.testing.assert_close(
        rollout.logp.double(), policy.score(rows).logp.detach(), rtol=0, atol=1e-4
    )


def rollouts_equal(one, two):
    for a, b in zip(one.rows, two.rows, strict=True):
        assert a.steps.equal(b.steps)
    torch.testing.assert_close(one.logp.double(), two.logp.double(), rtol=0, atol=1e-9)
    assert one.finished.equal(two.finished)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "cohere"])
def test_shared_contexts_draw_what_the_models_own_cache_draws(family, exact, monkeypatch):
    policy = tiny.policy(family)
    policy.template.__dict__["stops"] = frozenset(range(0, 340, 9))
    assert decode.place_bytes(policy.trunk, 40)
    shared = sampled(policy, CONTEXTS, 3, range(12), top_p=0.95)
    monkeypatch.setattr(decode, "place_bytes", lambda trunk, longest: 0)
    rollouts_equal(shared, sampled(policy, CONTEXTS, 3, range(12), top_p=0.95))


@pytest.mark.parametrize(("rows", "n"), [(1, 2), (3, 2), (5, 3), (8, 1), (4, 9)])
def test_rows_that_come_in_where_others_ended_draw_what_they_draw_alone(
    rows, n, exact, monkeypatch
):
    policy = tiny.policy()
    policy.template.__dict__["stops"] = frozenset(range(0, 340, 5))
    contexts = [*CONTEXTS, "the mat", "now or never", "yes"]
    seeds = range(len(contexts) * n)
    together = sampled(policy, contexts, n, seeds)
    assert len({len(row.steps) for row in together.rows}) > 3
    monkeypatch.setitem(generate.ROWS, "cpu", rows)
    rollouts_equal(together, sampled(policy, contexts, n, seeds))


def test_few_rows_are_decoded_at_once_where_memory_is_short(exact, monkeypatch):
    policy = tiny.policy()
    whole = sampled(policy, CONTEXTS, 3, range(12))
    asked = []
    made = decode.Rows.__init__

    def spy(self, trunk, room, steps):
        asked.append(room)
        made(self, trunk, room, steps)

    monkeypatch.setattr(decode.Rows, "__init__", spy)
    monkeypatch.setattr(generate, "MEMORY", 5 * 12 * decode.place_bytes(policy.trunk, 40))
    rollouts_equal(whole, sampled(policy, CONTEXTS, 3, range(12)))
    assert asked == [5]


def test_a_soft_cap_on_attention_is_kept(exact):
    policy = tiny.policy("gemma2")
    policy.model.config.sliding_window = 64
    assert decode.place_bytes(policy.trunk, 40)
    assert not decode.place_bytes(policy.trunk, 65)


def test_a_model_that_decodes_otherwise_uses_its_own_cache(exact, monkeypatch):
    merge = decode._merge
    monkeypatch.setattr(decode, "_merge", lambda one, two: merge(one, two) * 1.01)
    policy = tiny.policy()
    rollout = sampled(policy, CONTEXTS, 2, range(8))
    assert not decode.place_bytes(policy.trunk, 40)
    logp = policy.score(Rows.collate(rollout.rows)).logp.detach()
    torch.testing.assert_close(rollout.logp.double(), logp, rtol=0, atol=1e-5)


@pytest.fixture
def adapted():
    policy = tiny.policy(lora=LoraSpec(r=4))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.normal_(0, 0.3)
    return policy


def test_an_adapter_takes_part_and_every_weight_is_the_same_bit_for_bit_afterwards(adapted, exact):
    model = adapted.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    addresses = {name: p.data_ptr() for name, p in model.named_parameters()}
    base = adapted.freeze()
    base.load({name: torch.zeros_like(x) for name, x in base.tensors().items()})
    rollout = sampled(adapted, CONTEXTS, 2, range(8))
    for name, parameter in model.named_parameters():
        assert parameter.equal(before[name])
        assert parameter.data_ptr() == addresses[name]
    rows = Rows.collate(rollout.rows)
    logp = adapted.score(rows).logp.detach()
    torch.testing.assert_close(rollout.logp.double(), logp, rtol=0, atol=1e-5)
    assert not torch.allclose(logp, base.score(rows).logp.detach(), atol=1e-2)


def test_weights_come_back_when_sampling_is_broken_off(adapted, monkeypatch):
    rows = Rows.collate(sampled(adapted, CONTEXTS, 1, range(4)).rows)
    before = adapted.score(rows).logp.detach()

    def broken(self, tokens):
        raise KeyboardInterrupt

    monkeypatch.setattr(decode.Rows, "forward", broken)
    with pytest.raises(KeyboardInterrupt):
        sampled(adapted, CONTEXTS, 1, range(4))
    assert adapted.score(rows).logp.detach().equal(before)


def test_an_adapter_that_is_switched_off_stays_off(adapted, exact):
    from polyalign.policies.language import adapters

    adapters.enable(adapted.model, False)
    rows = sampled(adapted, CONTEXTS, 1, range(4))
    rollouts_equal(rows, sampled(tiny.policy(), CONTEXTS, 1, range(4)))


def test_payloads_are_text_for_text_and_a_turn_for_a_conversation():
    policy = tiny.policy()
    chat = ({"role": "user", "content": "hi"},)
    text, turns = sampled(policy, ["hi", chat], 1, [0, 1]).payloads
    assert isinstance(text, str)
    assert [turn["role"] for turn in turns] == ["assistant"]


def test_a_context_leaves_room_for_its_completion():
    policy = tiny.policy("gpt2")
    rollout = sampled(policy, ["the cat " * 200], 1, [0])
    assert len(rollout.rows[0].context) == 128 - 12


def cut_law(logits, how):
    """The truncated, tempered law, token by token from its definition."""
    p = (logits / how.temperature).softmax(-1)
    order = p.argsort(descending=True)
    if how.top_k:
        order = order[: how.top_k]
    kept, mass = [], 0.0
    total = float(p[order].sum())
    for token in order.tolist():
        if mass >= how.top_p * total:
            break
        kept.append(token)
        mass += float(p[token])
    law = torch.zeros_like(p)
    law[kept] = p[kept] / p[kept].sum()
    return law


HOWS = [
    Sampling(),
    Sampling(temperature=0.5),
    Sampling(temperature=2.0, top_p=0.7),
    Sampling(top_k=3),
    Sampling(temperature=0.7, top_k=6, top_p=0.8),
    Sampling(top_p=0.01),
]


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_t22_t23_old_is_the_law_that_drew_and_logp_the_policy_at_temperature_one(how):
    """A fine grid of uniforms stands for all draws: frequencies, and both log-probabilities."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(13, dtype=torch.float64)
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    token, old, logp = draw(logits.expand(len(grid), -1), grid, how)
    law = cut_law(logits, how)
    frequency = torch.bincount(token, minlength=13) / len(grid)
    torch.testing.assert_close(frequency.double(), law, rtol=0, atol=2e-4)
    torch.testing.assert_close(old, law[token].log(), rtol=0, atol=1e-12)
    torch.testing.assert_close(logp, logits.log_softmax(-1)[token], rtol=0, atol=1e-12)


def test_t23_the_truncated_law_sums_to_one_also_when_its_mass_lies_in_many_tokens():
    logits = torch.zeros(1, 9000, dtype=torch.float64)
    token, old, _ = draw(logits, torch.tensor([0.999], dtype=torch.float64), Sampling(top_p=0.5))
    torch.testing.assert_close(old.exp(), torch.tensor([1 / 4500], dtype=torch.float64))
    assert token.shape == (1,)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1000])
def test_the_draw_is_the_first_token_whose_cumulated_mass_exceeds_the_uniform(size):
    made = torch.Generator().manual_seed(size)
    logits = 3 * torch.randn(50, size, generator=made, dtype=torch.float64)
    uniform = torch.rand(50, generator=made, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, 1 - 1e-15])
    token, _, _ = draw(logits, uniform, Sampling())
    p = logits.softmax(-1).numpy()
    for row in range(50):
        below = p[row, : token[row]].sum()
        assert below <= uniform[row] + 1e-12
        assert uniform[row] < below + p[row, token[row]] + 1e-12


def test_draws_never_take_a_token_without_mass():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]]).expand(3, -1)
    ends = torch.tensor([0.0, 0.5, 1 - 1e-16], dtype=torch.float64)
    for how in (Sampling(), Sampling(top_k=3), Sampling(top_p=0.99)):
        token, old, _ = draw(logits, ends, how)
        assert token.max() <= 1
        assert old.isfinite().all()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"top_k": -1}, "top_k=-1"),
        ({"max_steps": 0}, "max_steps=0"),
    ],
)
def test_laws_that_cannot_be_drawn_from_are_refused(how, said):
    with pytest.raises(OptionError, match=said):
        sampled(tiny.policy(), ["a"], 1, [0], **how)
    with pytest.raises(OptionError, match="1 seeds were given"):
        sampled(tiny.policy(), ["a"], 2, [0])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_whose_logits_are_not_numbers_is_said_to_be_broken(temperature):
    policy = tiny.policy()
    with torch.no_grad():
        policy.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(NumericsError, match="not finite while sampling"):
        sampled(policy, ["a"], 2, [0, 1], temperature=temperature)
