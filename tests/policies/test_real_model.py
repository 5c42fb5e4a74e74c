"""The real SmolLM2 through the whole policy: encode, score, sample, constant, save."""

from __future__ import annotations

import math

import pytest
import torch

from polyalign.policies.language import fused
from polyalign.policies.language.adapters import LoraSpec
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.protocols import Sampling
from polyalign.types import Rows

pytestmark = pytest.mark.model

ASKED = ({"role": "user", "content": "What is the capital of France?"},)


def answer(text):
    return ({"role": "assistant", "content": text},)


@pytest.fixture(scope="module")
def policy(smollm2):
    return LanguagePolicy.from_pretrained(smollm2.path, lora=LoraSpec(r=4, alpha=8))


@pytest.fixture(scope="module")
def rows(policy):
    pairs = [
        (ASKED, answer("The capital of France is Paris.")),
        (ASKED, answer("The capital of France is Berlin, and that is all I know of it.")),
        ("The capital of France is", " Paris."),
    ]
    return Rows.collate([policy.encode(*pair) for pair in pairs])


def test_the_shared_layout_holds_and_equals_the_models_own_logits(policy, rows):
    assert policy.trunk.layout() == "packed"
    assert policy.trunk.splits
    with torch.no_grad():
        logp = policy.score(rows).logp
        for i in range(len(rows)):
            steps = rows.steps[i][rows.mask[i]]
            context = rows.contexts[int(rows.context[i])]
            ids = torch.tensor([[*context, *steps.tolist()]])
            law = policy.model(ids).logits[0, len(context) - 1 : -1].log_softmax(-1)
            hand = law.gather(-1, steps.unsqueeze(-1)).squeeze(-1)
            torch.testing.assert_close(logp[i, : len(hand)], hand, rtol=0, atol=1e-3)
    sums = logp.sum(-1)
    assert sums[0] > sums[1]


def test_t34_the_first_loss_of_dpo_is_log_two(policy, rows):
    with torch.no_grad():
        ratio = policy.score(rows).logp - policy.freeze().score(rows).logp
    margin = 0.1 * (ratio[0].sum() - ratio[1].sum())
    assert float(-torch.nn.functional.logsigmoid(margin)) == pytest.approx(math.log(2), abs=1e-7)


def test_it_answers_and_ends_its_answer(policy):
    rollout = policy.sample([ASKED], 1, Sampling(temperature=0, max_steps=16), [0])
    assert "Paris" in rollout.payloads[0][0]["content"]
    assert rollout.finished.all()
    assert rollout.rows[0].steps[-1] == policy.tokenizer.eos_token_id
    again = policy.encode(ASKED, rollout.payloads[0])
    assert again.context == rollout.rows[0].context
    assert again.steps.equal(rollout.rows[0].steps)


def test_sampled_log_probabilities_are_those_of_scoring(policy):
    rollout = policy.sample([ASKED, "Once upon a time"], 2, Sampling(max_steps=12), range(4))
    with torch.no_grad():
        logp = policy.score(Rows.collate(rollout.rows)).logp
    torch.testing.assert_close(rollout.logp, logp, rtol=0, atol=1e-3)


def test_float32_is_as_exact_packed_as_it_is_plain(smollm2):
    """Against float64, by group of parameters: at most twice the error of the model's own modules
    on rows alone; log-probabilities of single tokens within 1e-4.
    """
    pairs = [
        (ASKED, answer("The capital of France is Paris.")),
        (ASKED, answer("The capital of France is Berlin, and that is all I know of it.")),
    ]

    def measure(dtype, kind):
        policy = LanguagePolicy.from_pretrained(
            smollm2.path, lora=LoraSpec(r=4, alpha=8), dtype=dtype
        )
        made = torch.Generator().manual_seed(0)
        noise = {
            n: 0.02 * torch.randn(p.shape, generator=made) for n, p in policy.tensors().items()
        }
        policy.load({n: p + noise[n].to(p.dtype) for n, p in policy.tensors().items()})
        policy.trunk.layout()
        policy.trunk._layout = kind
        rows = Rows.collate([policy.encode(*pair) for pair in pairs])
        # The model's own norms would round float64 to float32.
        fused.switch(policy.model, dtype == "float64" or kind == "packed")
        logp = policy.score(rows).logp
        loss = logp[0].sum() - logp[1].sum()
        names, parameters = zip(*policy.trainable().items(), strict=True)
        found = {}
        for name, slope in zip(names, torch.autograd.grad(loss, parameters), strict=True):
            group = ".".join(part for part in name.split(".") if not part.isdigit())
            found.setdefault(group, []).append(slope.double().flatten())
        return logp.detach().double(), {g: torch.cat(parts) for g, parts in found.items()}

    exact_logp, exact_slopes = measure("float64", "plain")
    plain_logp, plain_slopes = measure("float32", "plain")
    logp, slopes = measure("float32", "packed")
    assert float((logp - plain_logp).abs().max()) < 1e-4
    assert float((logp - exact_logp).abs().max()) < 1e-4
    for group, exact in exact_slopes.items():
        own = float((plain_slopes[group] - exact).norm())
        assert float((slopes[group] - exact).norm()) <= 2 * own, group
