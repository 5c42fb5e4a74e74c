"""Both layouts compute the same numbers, whatever stands beside a row."""

from __future__ import annotations

import pytest
import torch

from polyalign.policies.language import attention
from polyalign.policies.language.adapters import LoraSpec
from polyalign.policies.language.layout import lay, passes
from polyalign.types import Row, Rows
from tests.policies import tiny

FAMILIES = ["llama", "qwen2", "gpt2", "gemma2", "cohere"]
PAIRS = [
    ("the cat", " sat on the mat"),
    ("the cat", " ran after the dog and the dog ran after the cat, over there"),
    ("Question: what is the answer?", " no"),
    ("Question: what is the answer?", " yes or no"),
    ("Question: what is the answer?", " the answer is here"),
    ("a", " prompt"),
]


def rows_of(policy, pairs=PAIRS) -> Rows:
    return Rows.collate([policy.encode(*pair) for pair in pairs])


def stirred(policy):
    """Adapters start as nothing; give them something to differ by."""
    torch.manual_seed(1)
    policy.load({n: torch.randn_like(p) * 0.2 for n, p in policy.trainable().items()})
    return policy


def by_hand(policy, pairs=PAIRS) -> list[torch.Tensor]:
    """One sequence at a time, through the model's own logits."""
    out = []
    for pair in pairs:
        row = policy.encode(*pair)
        ids = torch.tensor([[*row.context, *row.steps.tolist()]])
        law = policy.model(ids).logits[0, len(row.context) - 1 : -1].log_softmax(-1)
        out.append(law.gather(-1, row.steps.unsqueeze(-1)).squeeze(-1))
    return out


@pytest.mark.parametrize("lora", [None, LoraSpec(r=2, alpha=4)], ids=["whole", "lora"])
@pytest.mark.parametrize("kind", ["plain", "shared", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_t18_each_layout_gives_the_log_probabilities_and_gradients_of_rows_alone(
    family, kind, lora, exact
):
    policy = tiny.policy(family, lora=lora)
    if lora is not None:
        stirred(policy)
    assert policy.trunk.layout() == "packed"
    assert policy.trunk.splits
    policy.trunk._layout = kind
    rows = rows_of(policy)
    weight = torch.linspace(0.1, 1, rows.mask.numel(), dtype=torch.float64).reshape(rows.mask.shape)
    parameters = list(policy.trainable().values())

    ours = policy.score(rows).logp
    hand = torch.zeros_like(ours)
    for i, logp in enumerate(by_hand(policy)):
        hand[i, : len(logp)] = logp
    torch.testing.assert_close(ours, hand, rtol=0, atol=1e-10)

    found = torch.autograd.grad((ours * weight).sum(), parameters)
    expected = torch.autograd.grad((hand * weight).sum(), parameters)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_t18_neighbours_change_nothing(exact):
    policy = tiny.policy()
    together = policy.score(rows_of(policy)).logp
    order = [4, 0, 5, 2, 1, 3]
    turned = policy.score(rows_of(policy, [PAIRS[i] for i in order])).logp
    torch.testing.assert_close(turned, together[order], rtol=0, atol=1e-10)


def test_t18_sliding_windows_bound_the_shared_layout_too(exact):
    policy = tiny.policy("gemma2")
    row = policy.encode(*PAIRS[1])
    assert len(row.context) + len(row.steps) > 2 * policy.trunk.config.sliding_window
    rows = rows_of(policy, PAIRS[:2])
    ours = policy.score(rows).logp[1, : len(row.steps)]
    torch.testing.assert_close(ours, by_hand(policy, PAIRS[1:2])[0], rtol=0, atol=1e-10)


def test_a_model_that_shares_wrongly_is_scored_one_sequence_a_row(caplog, monkeypatch):
    from transformers import AttentionInterface

    def refusing(*args, **kwargs):
        raise ValueError("not this one")

    attention._register()
    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, refusing)
    trunk = tiny.policy(dtype=torch.float32).trunk
    with caplog.at_level("INFO"):
        assert trunk.layout() == "shared"
    assert "one group a row, as it cannot be packed (not this one)" in caplog.text
    trunk = tiny.policy(dtype=torch.float32).trunk
    trunk._form = lambda sees: sees & torch.eye(sees.shape[-1], dtype=torch.bool)
    with caplog.at_level("INFO"):
        assert trunk.layout() == "plain"
    assert "one sequence a row, as rows shared differ by" in caplog.text


def test_a_model_whose_logits_are_not_head_times_states_uses_its_own_logits(exact, caplog):
    policy = tiny.policy()
    forward = policy.model.forward

    def scaled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    policy.model.forward = scaled
    with caplog.at_level("INFO"):
        logp = policy.score(rows_of(policy)).logp
    assert "using its own logits" in caplog.text
    for i, hand in enumerate(by_hand(policy)):
        torch.testing.assert_close(logp[i, : len(hand)], hand, rtol=0, atol=1e-10)


def test_only_own_steps_are_scored_and_a_row_without_any_costs_nothing(exact):
    policy = tiny.policy()
    whole = policy.encode(*PAIRS[0])
    mask = whole.mask.clone()
    mask[1] = False
    part = Row(whole.context, whole.steps, mask)
    none = Row((5, 6), torch.tensor([7, 8]), torch.zeros(2, dtype=torch.bool))
    logp = policy.score(Rows.collate([whole, part, none])).logp
    torch.testing.assert_close(logp[1], logp[0] * mask, rtol=0, atol=1e-10)
    assert logp[2].eq(0).all()
    assert policy.score(Rows.collate([none])).logp.shape == (1, 2)


def test_passes_hold_every_row_once_and_little_padding():
    torch.manual_seed(0)
    rows = []
    for c in range(40):
        context = tuple(range(int(torch.randint(1, 60, ()))))
        for _ in range(2):
            n = int(torch.randint(1, 90, ()))
            rows.append(Row((c, *context), torch.arange(n), torch.ones(n, dtype=torch.bool)))
    batch = Rows.collate(rows)
    for kind in ("plain", "shared"):
        found = passes(batch, kind, waste=0.1)
        assert sorted(i for index in found for i in index) == list(range(len(rows)))
        laid = [lay(batch, kind, index) for index in found]
        assert all((x.block == -1).float().mean() <= 0.1 for x in laid)
        assert sum(len(x.where) for x in laid) == int(batch.mask.sum())
        assert len(found) < 40


def test_activation_checkpointing_changes_neither_scores_nor_gradients(exact):
    plain, again = tiny.policy(), tiny.policy()
    again.trunk.checkpoint_layers()
    results = []
    for policy in (plain, again):
        logp = policy.score(rows_of(policy)).logp
        results.append((logp, *torch.autograd.grad(logp.sum(), list(policy.trainable().values()))))
    for one, other in zip(*results):
        assert torch.equal(one, other)
    assert again.freeze().score(rows_of(again)).logp.equal(results[0][0])
