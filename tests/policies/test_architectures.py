"""The fast path of every listed architecture equals the model itself, in float64, to 1e-10.

The model itself: its own modules and logits, one row at a time, nothing shared, nothing padded.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyalign.errors import ModelError
from polyalign.policies.language import fused
from polyalign.policies.language.adapters import LoraSpec
from polyalign.policies.language.layout import passes
from polyalign.policies.language.logprobs import token_quantities
from polyalign.types import Row, Rows
from tests.policies import tiny

FAMILIES = [
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gpt2", "gpt_neox", "phi", "olmo",
    "olmo2", "mixtral", "cohere",
]  # fmt: skip
LORA = LoraSpec(r=2, alpha=4)
LENGTHS = [(7, (5, 9, 1)), (12, (4,)), (1, (6, 6)), (9, (11, 2))]
"""Tokens of each context and of its completions."""


def rows_of(lengths=LENGTHS, seed: int = 0) -> Rows:
    made = torch.Generator().manual_seed(seed)

    def draw(n: int) -> torch.Tensor:
        return torch.randint(3, 340, (n,), generator=made)

    rows = []
    for n, completions in lengths:
        context = tuple(draw(n).tolist())
        for m in completions:
            rows.append(Row(context, draw(m), torch.ones(m, dtype=torch.bool)))
    return Rows.collate(rows)


def stirred(policy):
    torch.manual_seed(1)
    policy.load({n: p + 0.2 * torch.randn_like(p) for n, p in policy.tensors().items()})
    return policy


def alone(policy, rows: Rows) -> torch.Tensor:
    """Log-probabilities [N, T] by the model's own modules and logits, row by row."""
    out = torch.zeros(rows.mask.shape, dtype=torch.float64)
    with fused.off(policy.model):
        for i in range(len(rows)):
            context = rows.contexts[int(rows.context[i])]
            steps = rows.steps[i][rows.mask[i]]
            ids = torch.tensor([[*context, *steps.tolist()]])
            law = policy.model(ids).logits[0, len(context) - 1 : -1].log_softmax(-1)
            out[i, : len(steps)] = law.gather(-1, steps.unsqueeze(-1)).squeeze(-1)
    return out


def gradients(policy, logp: torch.Tensor) -> tuple[torch.Tensor, ...]:
    weight = torch.linspace(-1, 1, logp.numel(), dtype=logp.dtype).reshape(logp.shape)
    parameters = list(policy.trainable().values())
    return torch.autograd.grad(
        (logp * weight).sum(), parameters, allow_unused=True, materialize_grads=True
    )


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_t18_packed_rows_give_the_models_own_numbers_and_gradients(family, lora, exact):
    policy = stirred(tiny.policy(family, lora=lora))
    rows = rows_of()
    assert policy.trunk.layout(rows) == "packed"
    ours, hand = policy.score(rows).logp, alone(policy, rows)
    torch.testing.assert_close(ours, hand, rtol=0, atol=1e-10)
    for one, other in zip(gradients(policy, ours), gradients(policy, hand), strict=True):
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_windows_that_layers_do_not_name_keep_long_rows_apart(family, exact, caplog):
    policy = tiny.policy(family)
    rows = rows_of()
    policy.trunk.layout()
    policy.trunk._narrow = policy.trunk.config.sliding_window
    with caplog.at_level("INFO"):
        ours = policy.score(rows).logp
    assert caplog.text.count("longer than its sliding window") == 1
    torch.testing.assert_close(ours, alone(policy, rows), rtol=0, atol=1e-10)
    assert policy.trunk.layout(rows_of([(2, (1, 2))])) == "packed"


def test_a_state_space_model_is_scored_one_sequence_a_row(caplog):
    from transformers import MambaConfig, MambaForCausalLM

    from polyalign.policies.language.policy import LanguagePolicy

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MambaForCausalLM(
            MambaConfig(
                vocab_size=340, hidden_size=16, state_size=4, num_hidden_layers=2,
                time_step_rank=2, eos_token_id=1, bos_token_id=0, pad_token_id=1,
            )
        )  # fmt: skip
    policy = LanguagePolicy(model, tiny.tokenizer())
    rows = rows_of()
    with caplog.at_level("INFO"):
        assert policy.trunk.layout() == "plain"
    assert "one sequence a row" in caplog.text
    torch.testing.assert_close(
        policy.score(rows).logp.double(), alone(policy, rows), rtol=0, atol=1e-4
    )


@pytest.fixture(scope="module")
def llama():
    return stirred(tiny.policy("llama", lora=LORA))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 14), st.lists(st.integers(1, 12), min_size=1, max_size=4)),
        min_size=1,
        max_size=5,
    ),
    order=st.randoms(use_true_random=False),
    most=st.integers(1, 80),
    chunk=st.integers(1, 40),
)
def test_t18_neighbours_order_cuts_and_chunks_change_nothing(llama, lengths, order, most, chunk):
    """Each row alone, against all of them in any order, cut and chunked anyhow."""
    rows = rows_of(lengths, seed=3)
    index = list(range(len(rows)))
    order.shuffle(index)
    shuffled = rows.take(torch.tensor(index))
    found = torch.zeros(rows.mask.shape, dtype=torch.float64)
    steps = rows.mask.shape[1]
    for part in passes(shuffled, "packed", most=most):
        sub = shuffled.take(torch.tensor(part))
        states, own = llama.states(sub)
        targets = sub.steps.flatten()[own]
        logp = token_quantities(states, llama.trunk.head, targets, chunk=chunk)["logp"]
        t = sub.mask.shape[1]
        for value, place in zip(logp, own.tolist(), strict=True):
            found[index[part[place // t]], place % t] = value
    assert found.shape[1] == steps
    each = torch.zeros_like(found)
    for i in range(len(rows)):
        row = rows.take(torch.tensor([i]))
        one = llama.score(row).logp
        each[i, : one.shape[1]] = one
    torch.testing.assert_close(found, each, rtol=0, atol=1e-10)
    for one, other in zip(gradients(llama, found), gradients(llama, each), strict=True):
        scale = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one / scale, other / scale, rtol=0, atol=1e-10)


def test_softcapping_and_windows_by_flex_attention_equal_a_mask_of_each_group():
    """The kernel for GPUs, evaluated on a CPU; its gradients exist on GPUs only."""
    from polyalign.policies.language import attention, flex

    row = attention.Packed((attention.Group(0, 9, (4, 6)), attention.Group(19, 3, (5,))))
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, 27, 16, generator=made) for h in (4, 2, 2))
    for window, cap in ((None, None), (4, None), (None, 3.0)):
        one = flex.by_blocks(row, q, k, v, 0.25, window, cap)
        other = attention._by_group(row, q, k, v, 0.25, window, cap)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_twenty_steps_of_training_have_the_losses_of_the_plain_path():
    """DPO in float32 by AdamW: packed rows and our modules, against single rows and the model's."""
    losses = []
    for fast in (True, False):
        policy = tiny.policy("llama", torch.float32, LORA)
        policy.trunk.layout()
        if not fast:
            policy.trunk._layout = "plain"
            fused.switch(policy.model, False)
        reference = policy.freeze()
        optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-2)
        losses.append([])
        for step in range(20):
            rows = rows_of([(6, (9, 5)), (11, (3, 8))], seed=step % 4)
            with torch.no_grad():
                start = reference.score(rows).logp
            ratio = (policy.score(rows).logp - start).sum(-1)
            loss = -torch.nn.functional.logsigmoid(0.5 * (ratio[::2] - ratio[1::2])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(float(loss.detach()))
    assert losses[0][0] == pytest.approx(0.6931472, abs=1e-6)
    assert losses[0][-1] < 0.6
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("decoder", [True, False])
def test_a_model_that_sees_later_tokens_is_refused(decoder):
    """An encoder loads as a causal language model too, and only warns."""
    from transformers import BertConfig, BertLMHeadModel

    from polyalign.policies.language.policy import LanguagePolicy

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=340, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, is_decoder=decoder,
        initializer_range=0.3,
    )  # fmt: skip
    policy = LanguagePolicy(BertLMHeadModel(config).eval(), tiny.tokenizer())
    if decoder:
        assert float(policy.score(rows_of()).logp.detach().sum()) < 0
    else:
        with pytest.raises(ModelError, match=r"sees tokens that come later.*is_decoder"):
            policy.score(rows_of())
