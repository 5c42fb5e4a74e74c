"""Runs on bases in few bits and with averages in 8 bits: planned, resumed, told, refused."""

from __future__ import annotations

import importlib.util
import json

import pytest

from polyalign.api import declaration_of
from polyalign.errors import Interrupted, OptionError, PolyalignError
from polyalign.evaluation.subject import open_subject
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.reports.model_card import write_model_card
from polyalign.runs.config import configure
from polyalign.runs.folder import FolderHooks, Silent
from polyalign.runs.training import prepare, train
from tests.runs.kit import config, final_bytes, rows_without_time, write_pairs

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="needs bitsandbytes: pip install 'polyalign[quantized]'",
)
CASES = {
    "4 bits": {"quantize": "4bit"},
    "8 bits, averages in 8 bits": {
        "quantize": "8bit",
        "optimizer": "adamw_8bit",
        # Adapters of more than 4096 numbers, below which averages stay in float32.
        "lora": {"r": 64, "alpha": 64},
    },
    "all weights, averages in 8 bits": {"optimizer": "adamw_8bit", "full": True},
}


@pytest.mark.parametrize("name", CASES)
def test_a_stopped_run_ends_with_the_weights_of_an_uninterrupted_one(
    name, tmp_path, tiny_llama, monkeypatch
):
    data = write_pairs(tmp_path / "pairs.jsonl")
    declaration = declaration_of("dpo")
    whole, parts = (
        config("dpo", tiny_llama, data, tmp_path / out, epochs=1, **CASES[name])
        for out in ("whole", "parts")
    )
    train(declaration, whole)
    boundary = FolderHooks.boundary

    def stop_each_time(self, session):
        self.stopping = "the test"
        boundary(self, session)

    monkeypatch.setattr(FolderHooks, "boundary", stop_each_time)
    for _ in range(20):
        try:
            train(declaration, parts, resume=True)
            break
        except Interrupted:
            continue
    assert final_bytes(parts.output) == final_bytes(whole.output)
    assert rows_without_time(parts.output) == rows_without_time(whole.output)
    losses = [row["loss"] for row in rows_without_time(whole.output) if row["split"] == "train"]
    assert losses[0] == pytest.approx(0.6931472, abs=1e-5)
    assert losses[-1] < losses[0] - 0.01


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("quantised")
    data = write_pairs(folder / "pairs.jsonl", 8)
    settings = config("dpo", tiny_llama, data, folder / "run", quantize="4bit", epochs=1)
    return train(declaration_of("dpo"), settings)


def test_plan_card_and_final_folder_say_how_the_base_was_held(run):
    plan = run.plan()
    assert plan["quantize"] == "4bit"
    assert plan["full"] is False
    assert any("held in 4 bits" in note for note in plan["notes"])
    whole = LanguagePolicy.from_pretrained(run.path / "final", dtype="float32")
    assert plan["parameters"] > plan["trainable"]
    assert json.loads((run.path / "final/polyalign.json").read_text())["quantize"] == "4bit"
    assert whole.quantize == "4bit"
    card = write_model_card(run.path).read_text()
    assert "| quantize | 4bit |" in card
    assert "load_in_4bit=True" in card
    code = card.split("```python")[1].split("```")[0]
    compile(code, "card", "exec")


def test_a_run_is_measured_against_the_base_as_it_was_held(run):
    subject = open_subject(run.path)
    assert subject.reference.quantize == subject.policy.quantize == "4bit"


@pytest.mark.parametrize(
    ("options", "said", "mend"),
    [
        ({"quantize": "4bit", "full": True}, "cannot be trained", "Leave full out"),
        ({"quantize": "4bit", "dtype": "float64"}, "cannot compute in float64", "float32"),
        ({"optimizer": "adamw_8bit", "dtype": "float64"}, "cannot step in float64", "adamw"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_read(
    options, said, mend, tmp_path, tiny_llama, monkeypatch
):
    data = write_pairs(tmp_path / "pairs.jsonl", 8)
    monkeypatch.setattr(LanguagePolicy, "from_pretrained", None)
    settings = config("dpo", tiny_llama, data, tmp_path / "run", **options)
    with pytest.raises(PolyalignError) as caught:
        prepare(declaration_of("dpo"), settings, Silent())
    assert said in str(caught.value)
    assert mend in str(caught.value)


@pytest.mark.parametrize("options", [{"quantize": "8bit"}, {"optimizer": "adamw_8bit"}])
def test_without_the_library_a_run_is_refused_before_the_model_is_read(
    options, tmp_path, tiny_llama, monkeypatch
):
    data = write_pairs(tmp_path / "pairs.jsonl", 8)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "bitsandbytes" else find(n, *a)
    )
    monkeypatch.setattr(LanguagePolicy, "from_pretrained", None)
    settings = config("dpo", tiny_llama, data, tmp_path / "run", **options)
    with pytest.raises(PolyalignError, match=r"pip install 'polyalign\[quantized\]'"):
        prepare(declaration_of("dpo"), settings, Silent())


@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("load_in_4bit", True, "Here it is quantize=4bit."),
        ("load_in_8bit", True, "Here it is quantize=8bit."),
        ("quantization_bit", 4, "Here it is quantize=4bit or quantize=8bit."),
        ("quantize", "nf4", "4bit"),
        ("optimizer", "adamw8bit", "Did you mean adamw_8bit?"),
    ],
)
def test_other_names_of_these_options_lead_here(name, value, mend):
    with pytest.raises(OptionError) as caught:
        configure({"model": "m", "data": ["d"], "output": "o", name: value}, declaration_of("dpo"))
    assert mend in str(caught.value)
