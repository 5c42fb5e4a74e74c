"""Models with recurrent layers: sampled by their own states, exactly, and the log says why."""

from __future__ import annotations

import pytest
import torch
import transformers

from polyalign.policies.language import own_cache
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.protocols import Sampling
from polyalign.types import Rows
from tests.policies import tiny
from tests.policies.test_architectures import alone

SIZE = {
    "vocab_size": 340, "hidden_size": 16, "num_hidden_layers": 2, "eos_token_id": 1,
    "bos_token_id": 0, "pad_token_id": 1, "initializer_range": 0.3,
}  # fmt: skip
HEADS = {"intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
MODELS = {
    "state space": ("Mamba", {"state_size": 4, "time_step_rank": 2}),
    "attention beside state space in every layer": (
        "FalconH1",
        HEADS | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4,
                 "mamba_n_groups": 1, "mamba_chunk_size": 4},
    ),
    "attention and convolutions in turn": (
        "Lfm2", HEADS | {"layer_types": ["conv", "full_attention"]},
    ),
}  # fmt: skip
PROMPTS = ["the cat", "a prompt ends here", "the mat", "now or never and the cat sat on the mat"]


def policy_of(kind: str) -> LanguagePolicy:
    name, more = MODELS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**SIZE, **more)
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    return LanguagePolicy(model, tiny.tokenizer())


@pytest.fixture(scope="module", params=MODELS)
def policy(request):
    return policy_of(request.param)


def test_log_probabilities_of_what_is_sampled_are_those_of_scoring(policy, caplog):
    own_cache._ways.clear()
    with caplog.at_level("INFO"):
        drawn = policy.sample(PROMPTS, 2, Sampling(max_steps=7), range(8))
        policy.sample(PROMPTS, 1, Sampling(max_steps=2), range(4))
    assert caplog.text.count("as its layers are recurrent") == 1
    rows = Rows.collate(list(drawn.rows))
    torch.testing.assert_close(drawn.logp.double(), alone(policy, rows), rtol=0, atol=1e-4)
    assert torch.equal(drawn.logp, drawn.old)


def test_the_law_sampled_from_is_the_tempered_nucleus(policy):
    how = Sampling(temperature=0.7, top_p=0.8, max_steps=5)
    drawn = policy.sample(PROMPTS[:2], 2, how, range(4))
    for i, row in enumerate(drawn.rows):
        ids = [*row.context, *row.steps.tolist()]
        logits = policy.model(torch.tensor([ids])).logits[0, len(row.context) - 1 : -1].double()
        law = (logits.detach() / 0.7).softmax(-1)
        for t, token in enumerate(row.steps.tolist()):
            order = law[t].argsort(descending=True)
            before = law[t][order].cumsum(0) - law[t][order]
            nucleus = order[before < 0.8]
            assert token in nucleus.tolist()
            expected = float((law[t][token] / law[t][nucleus].sum()).log())
            assert float(drawn.old[i, t]) == pytest.approx(expected, abs=1e-4)


def test_neighbours_change_no_draw(policy):
    how = Sampling(max_steps=6)
    together = policy.sample(PROMPTS, 2, how, range(8))
    for c, prompt in enumerate(PROMPTS):
        one = policy.sample([prompt], 2, how, [2 * c, 2 * c + 1])
        for k in range(2):
            assert torch.equal(one.rows[k].steps, together.rows[2 * c + k].steps)


def test_where_states_go_wrong_whole_rows_are_computed_at_every_step(monkeypatch, caplog):
    policy = policy_of("state space")
    forward = own_cache.Batch._forward

    def wrong(self, ids):
        out = forward(self, ids)
        return out if self.way == "whole" else out + 1

    monkeypatch.setattr(own_cache.Batch, "_forward", wrong)
    with caplog.at_level("INFO"):
        drawn = policy.sample(PROMPTS, 2, Sampling(max_steps=5), range(8))
    assert "sampled without a cache" in caplog.text
    rows = Rows.collate(list(drawn.rows))
    torch.testing.assert_close(drawn.logp.double(), alone(policy, rows), rtol=0, atol=1e-4)


def test_contexts_of_one_length_stand_together_where_padding_would_show():
    contexts = [(1, 2), (1,), (3, 4), (5, 6), (7,)]
    assert list(own_cache.batches(contexts, "equal", 2)) == [[1, 4], [0, 2], [3]]
    assert list(own_cache.batches(contexts, "padded", 3)) == [[1, 4, 0], [2, 3]]
