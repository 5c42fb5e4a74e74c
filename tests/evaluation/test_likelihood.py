import math

import pytest

from polyalign.evaluation.generation import draw
from polyalign.evaluation.likelihood import divergence, perplexity
from polyalign.feedback.records import Demonstration, Prompt
from polyalign.protocols import Sampling
from tests.evaluation.fake import Letters

PROMPTS = [Prompt(key=str(i), prompt=f"p{i}") for i in range(200)]


def demonstrations(*texts):
    return [Demonstration(key=str(i), prompt=f"p{i}", completion=t) for i, t in enumerate(texts)]


def test_the_perplexity_of_a_uniform_law_is_the_number_of_choices():
    found = perplexity(Letters(), demonstrations("abc", "h", "aaaaaaa")).to_json()
    assert found["perplexity"]["value"] == pytest.approx(9.0)
    assert (found["perplexity"]["low"], found["perplexity"]["high"]) == pytest.approx((9.0, 9.0))
    assert found["steps"] == 14  # the end counts


def test_perplexity_weighs_steps_alike_and_not_answers():
    policy = Letters(a=7)
    found = perplexity(policy, demonstrations("aaaaaaaa", "b")).to_json()
    nats = -(8 * policy.law[0] + policy.law[1] + 2 * policy.law[8]) / 11
    assert found["perplexity"]["value"] == pytest.approx(math.exp(float(nats)))


def test_divergence_from_itself_is_exactly_zero():
    policy = Letters(a=3)
    found = divergence(policy, Letters(a=3), draw(policy, PROMPTS[:5])).to_json()
    assert (found["kl"]["value"], found["kl"]["low"], found["kl_k3"]["value"]) == (0, 0, 0)


@pytest.mark.parametrize("name", ["kl", "kl_k3"])
def test_divergence_on_samples_covers_the_exact_value(name):
    policy, reference = Letters(a=4, end=3), Letters()
    p = policy.law.exp()
    step = float((p * (policy.law - reference.law)).sum())
    exact = step / float(p[8])  # steps until the end are geometric
    samples = draw(policy, PROMPTS, 4, Sampling(max_steps=200))
    found = divergence(policy, reference, samples).to_json()
    assert found[name]["low"] < exact < found[name]["high"]
    assert found["kl_per_step"]["low"] < step < found["kl_per_step"]["high"]


def test_samples_of_another_law_are_refused():
    policy = Letters()
    with pytest.raises(ValueError, match="temperature 1"):
        divergence(policy, policy, draw(policy, PROMPTS[:2], how=Sampling(temperature=0.5)))
