"""What a run's reference is: the model it started from, whatever it started from, to the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from polyalign.api import declaration_of
from polyalign.errors import Interrupted, RunError
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.references.cache import Cache
from polyalign.runs.folder import FolderHooks
from polyalign.runs.training import train
from polyalign.types import Rows
from tests.conftest import make_tiny_llama
from tests.runs.kit import config, final_bytes, rows_without_time, write_pairs

DPO = declaration_of("dpo")
STARTS: dict[str, dict[str, Any]] = {
    "all weights": {"full": True},
    "a new adapter": {"full": False},
    "all weights, computed in bfloat16": {"full": True, "dtype": "bfloat16"},
    "a new adapter on a bfloat16 base": {"full": False, "dtype": "bfloat16"},
    "a trained adapter": {},
    "a model trained before": {"full": True},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> dict[str, Path]:
    """Pairs, and runs to go on from: one of all weights and one of an adapter."""
    folder = tmp_path_factory.mktemp("references")
    data = write_pairs(folder / "pairs.jsonl", 12)
    found = {"data": data, "base": tiny_llama}
    for name, full in (("a trained adapter", False), ("a model trained before", True)):
        made = config("dpo", tiny_llama, data, folder / name, epochs=1, full=full, samples=0)
        found[name] = train(DPO, made) / "final"
    return found


def stop_at_each_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    boundary = FolderHooks.boundary

    def stop(self: FolderHooks, session: Any) -> None:
        self.stopping = "the test"
        boundary(self, session)

    monkeypatch.setattr(FolderHooks, "boundary", stop)


def until_done(made: Any) -> None:
    for _ in range(40):
        try:
            train(DPO, made, resume=True)
            return
        except Interrupted:
            continue
    raise AssertionError("the run never ended")


@pytest.mark.parametrize("epochs", [1, 2], ids=["live", "cached"])
@pytest.mark.parametrize("start", STARTS)
def test_t34_the_first_loss_is_log_two_in_every_start_mode(start, epochs, place, tmp_path):
    model = place.get(start, place["base"])
    made = config(
        "dpo", model, place["data"], tmp_path / "run", epochs=epochs, samples=0, save_every=0,
        **STARTS[start],
    )  # fmt: skip
    rows = train(DPO, made).metrics()
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    assert abs(rows[-1]["loss"] - math.log(2)) > 1e-4


@pytest.mark.parametrize("epochs", [1, 2], ids=["live", "cached"])
def test_t37_a_trained_adapters_reference_stands_still_over_resumes(
    epochs, place, tmp_path, monkeypatch
):
    options = {"epochs": epochs, "samples": 0}
    adapter = place["a trained adapter"]
    whole = config("dpo", adapter, place["data"], tmp_path / "whole", **options)
    train(DPO, whole)
    parts = config("dpo", adapter, place["data"], tmp_path / "parts", **options)
    with monkeypatch.context() as patch:
        stop_at_each_boundary(patch)
        until_done(parts)
    assert rows_without_time(parts.output) == rows_without_time(whole.output)
    assert final_bytes(parts.output) == final_bytes(whole.output)


def test_t39_reference_values_of_other_weights_are_not_used_again(place, tmp_path, monkeypatch):
    """The model's folder was overwritten between two parts of a run, and --replan goes on."""
    model = make_tiny_llama(tmp_path / "model")
    made = config("dpo", model, place["data"], tmp_path / "run", batch=6, epochs=3, samples=0)
    with monkeypatch.context() as patch:
        stop_at_each_boundary(patch)
        with pytest.raises(Interrupted):
            train(DPO, made)
    make_tiny_llama(model, seed=5)
    with pytest.raises(RunError, match=r"planned with model=.*--replan"):
        train(DPO, made, resume=True)
    used: list[tuple[Cache, Rows, torch.Tensor]] = []
    fill = Cache.fill

    def spy(self: Cache, batch: Any, cut: Any) -> Any:
        out = fill(self, batch, cut)
        used.append((self, batch.rows, out[0]))
        return out

    monkeypatch.setattr(Cache, "fill", spy)
    train(DPO, made, resume=True, replan=True)
    now = LanguagePolicy.from_pretrained(model, frozen=True)
    assert len(used) == 2 + 5  # scored ahead, and filled in at each step that is left
    for _, rows, values in used:
        with torch.no_grad():
            torch.testing.assert_close(values, now.score(rows).logp, rtol=0, atol=1e-4)


@pytest.mark.parametrize("start", ["all weights", "a new adapter", "a trained adapter"])
def test_t34_evaluation_measures_a_run_against_the_model_it_started_from(start, place, tmp_path):
    from polyalign.evaluation.subject import open_subject

    model = place.get(start, place["base"])
    made = config(
        "dpo", model, place["data"], tmp_path / "run", epochs=1, samples=0, **STARTS[start]
    )
    subject = open_subject(train(DPO, made).path)
    began = LanguagePolicy.from_pretrained(model, frozen=True)
    rows = Rows.collate([began.encode("Say", text) for text in ("good 1", "bad bad")])
    with torch.no_grad():
        expected, now = began.score(rows).logp, subject.policy.score(rows).logp
        assert subject.reference is not None
        against = subject.reference.score(rows).logp
    torch.testing.assert_close(against, expected, rtol=0, atol=1e-5)
    assert (now - expected).abs().max() > 1e-2
