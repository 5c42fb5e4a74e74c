import json

import pytest
import yaml

from polyalign.errors import RunError
from polyalign.reports.model_card import write_model_card
from tests.reports.synthetic import evaluation, run_folder


@pytest.fixture
def run(tmp_path):
    folder = run_folder(tmp_path / "first")
    (folder / "evaluation.json").write_text(json.dumps(evaluation()))
    (folder / "final" / "adapter_config.json").write_text("{}")
    return folder


def card(run):
    text = write_model_card(run).read_text("utf-8")
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(head), body


def test_the_metadata_say_what_hubs_ask(run):
    head, _ = card(run)
    assert head["base_model"] == "smollm2"
    assert head["library_name"] == "peft"
    assert {"polyalign", "dpo"} <= set(head["tags"])
    metric = head["model-index"][0]["results"][0]["metrics"][0]
    assert metric["value"] == 0.618


def test_the_card_states_measured_results_with_intervals_options_and_versions(run):
    _, body = card(run)
    for words in (
        "| Ranking accuracy of the implicit reward | a coin: 50 % | 61.8 % [57.1, 66.5] |",
        "| beta | 0.1 |",
        "| lr | 0.0001 |",
        "| lora | r 16, alpha 32 |",
        "- torch 2.13.0",
        "AutoPeftModelForCausalLM",
        "data/human_pairs.jsonl",
    ):
        assert words in body
    assert "/home/somebody" not in body


def test_whole_weights_load_with_transformers_alone(run):
    (run / "final" / "adapter_config.json").unlink()
    head, body = card(run)
    assert head["library_name"] == "transformers"
    assert "peft" not in body


def test_the_code_of_the_card_is_python(run):
    _, body = card(run)
    compile(body.split("```python\n")[1].split("```")[0], "card", "exec")


def test_without_an_evaluation_the_card_claims_nothing_beyond_the_run(tmp_path):
    folder = run_folder(tmp_path / "r")
    (folder / "metrics.jsonl").unlink()
    head, body = card(folder)
    assert "model-index" not in head
    assert "Nothing was measured on held-out data." in body


def test_a_run_without_a_model_has_no_card(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(RunError, match="no final model to describe"):
        write_model_card(tmp_path)
