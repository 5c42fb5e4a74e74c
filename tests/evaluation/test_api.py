import json

import pytest
import torch
import yaml

from polyalign.errors import DataError, OptionError, RunError
from polyalign.evaluation.api import evaluate, prompts_of
from polyalign.feedback.records import Binary, Demonstration, Pair, Prompt
from tests.evaluation.fake import Letters

PAIRS = [Pair(key=str(i), prompt=f"p{i}", chosen="aab", rejected="bb") for i in range(12)]
PROMPTS = [
    Prompt(key=str(i), prompt=f"p{i}", meta={"spec": {"kind": "begins_with", "phrase": "a"}})
    for i in range(12)
]


def likes_a(completion):
    return float(completion.startswith("a"))


def plain(found):
    return json.loads(json.dumps(found, allow_nan=False))


def test_pairs_give_ranking_before_and_after_and_divergence():
    found = plain(evaluate(Letters(a=4, end=2), PAIRS, reference=Letters(end=2)))
    assert found["ranking"]["accuracy"]["implicit"]["value"] == 1.0
    assert found["ranking_reference"]["accuracy"]["mean_likelihood"]["value"] == 0.0
    assert found["ranking_gain"]["mean_likelihood"]["value"] == 1.0
    assert found["divergence"]["kl"]["low"] > 0
    assert "judge" not in found


def test_demonstrations_give_perplexity_before_and_after():
    shown = [Demonstration(key=str(i), prompt=f"p{i}", completion="aa") for i in range(5)]
    found = plain(evaluate(Letters(a=4), shown, reference=Letters(), samples=0))
    assert found["perplexity"]["perplexity"]["value"] < 9
    assert found["perplexity_reference"]["perplexity"]["value"] == pytest.approx(9)
    assert found["nats_gain"]["value"] < 0
    assert "divergence" not in found


def test_a_judge_gives_success_of_both_sides_and_the_win_rate():
    found = plain(
        evaluate(Letters(a=30), PAIRS, baseline=Letters(), judge=likes_a, n=4, max_new_tokens=20)
    )["judge"]
    assert found["success"]["value"] > found["baseline"]["success"]["value"]
    assert found["difference"]["p"] < 0.05
    assert found["win_rate"]["low"] > 0.5
    assert found["best_of_4"]["value"] >= found["success"]["value"]
    assert len(found["answers"]) == 48
    assert found["sampling"]["n"] == 4


def test_prompts_that_carry_a_verifier_need_no_judge():
    pytest.importorskip("polyalign.judges.verifiers")
    found = plain(evaluate(Letters(a=30), PROMPTS, max_new_tokens=20))["judge"]
    assert found["name"] == "verifier"
    assert found["success"]["n"] == 12


def test_a_comparing_judge_needs_a_baseline():
    judge = lambda first, second: 0.5  # noqa: E731
    with pytest.raises(OptionError, match="compares two answers, and there is no baseline"):
        evaluate(Letters(), PAIRS, judge=judge)
    found = plain(evaluate(Letters(), PAIRS, baseline=Letters(), judge=judge, max_new_tokens=9))
    assert found["judge"]["win_rate"]["value"] == 0.5


def test_a_baseline_without_a_judge_is_refused_not_ignored():
    with pytest.raises(OptionError, match="baseline was given but no judge"):
        evaluate(Letters(), PAIRS, baseline=Letters())


def test_feedback_that_says_nothing_about_a_model_is_refused():
    thumbs = [Binary(key="1", prompt="p", completion="a", label=True)]
    with pytest.raises(DataError, match="holds binary; evaluation reads pairs, demonstrations"):
        evaluate(Letters(), thumbs)


def test_each_prompt_is_asked_once_with_its_columns():
    twice = [PAIRS[0], PAIRS[0], Demonstration(key="x", prompt="q", completion="a", meta={"k": 1})]
    found = prompts_of(twice)
    assert [p.prompt for p in found] == ["p0", "q"]
    assert found[1].meta == {"k": 1}


def test_evaluation_is_repeatable():
    one, two = (
        evaluate(Letters(a=4), PAIRS, reference=Letters(), judge=likes_a, seed=3, max_new_tokens=9)
        for _ in range(2)
    )
    assert one | {"seconds": 0} == two | {"seconds": 0}


@pytest.fixture(scope="module")
def run(tiny_llama, tmp_path_factory):
    """A run folder whose final adapter differs from its base."""
    from polyalign.policies.language.adapters import LoraSpec
    from polyalign.policies.language.policy import LanguagePolicy

    folder = tmp_path_factory.mktemp("runs") / "first"
    policy = LanguagePolicy.from_pretrained(tiny_llama, lora=LoraSpec(4, 8.0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    policy.save(folder / "final")
    config = {"model": str(tiny_llama), "hyper": {"beta": 0.5}, "max_length": 256}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_run_is_measured_against_the_model_it_started_from(run, tiny_llama):
    pairs = [
        Pair(key=str(i), prompt=f"Question {i}", chosen=f"yes {i}", rejected="no, never")
        for i in range(4)
    ]
    found = plain(evaluate(run, pairs, samples=4, max_new_tokens=8, judge=lambda completion: 1.0))
    alone = plain(evaluate(str(tiny_llama), pairs, samples=0))
    assert found["reference"] == str(tiny_llama)
    assert found["ranking"]["beta"] == 0.5
    before, base = found["ranking_reference"], alone["ranking"]
    for name in ("logps/chosen", "logps/rejected"):
        assert before[name]["value"] == pytest.approx(base[name]["value"], abs=1e-4)
        assert abs(found["ranking"][name]["value"] - base[name]["value"]) > 0.01
    assert found["divergence"]["kl_k3"]["value"] > 0
    assert found["baseline"] == str(tiny_llama)
    assert found["judge"]["win_rate"]["value"] == 0.5
    assert plain(found) == json.loads((run / "evaluation.json").read_text())


def test_a_run_without_a_final_model_is_told_how_to_finish(tmp_path):
    (tmp_path / "config.yaml").write_text("model: x\n")
    with pytest.raises(RunError, match="no final model yet. Finish it with: polyalign train"):
        evaluate(tmp_path, PAIRS)
