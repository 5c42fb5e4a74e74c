"""References that are scored before the first step: the same run, and no second model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polyalign.api import declaration_of
from polyalign.errors import Interrupted, ModelError, OptionError
from polyalign.loops.references import References
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.runs import training
from polyalign.runs.folder import FolderHooks, Silent
from polyalign.runs.training import prepare, train
from tests.conftest import make_tiny_llama
from tests.runs.kit import config, final_bytes, rows_without_time, write_pairs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("first")
    return {"data": write_pairs(folder / "a.jsonl", 18), "held": write_pairs(folder / "b.jsonl", 5)}


def made(method: str, model: Path, data: dict[str, Path], output: Path, **options: Any) -> Any:
    options = {"epochs": 2, "eval_data": [data["held"]], "eval_every": 2, "full": True} | options
    return config(method, model, data["data"], output, **options)


@pytest.mark.parametrize("method", ["dpo", "ipo", "tdpo"])
@pytest.mark.parametrize("full", [True, False], ids=["all weights", "an adapter"])
def test_it_is_the_run_that_holds_its_reference(method, full, tiny_llama, data, tmp_path):
    runs = {}
    for first in (True, False) if method != "tdpo" else (None,):
        options = {"full": full, "precompute_references": first}
        runs[first] = made(method, tiny_llama, data, tmp_path / str(first), **options)
        train(declaration_of(method), runs[first])
    if method == "tdpo":  # it reads the whole law at each step, so there is nothing to score ahead
        assert not list((tmp_path / "None" / "kept").rglob("ahead-*"))
        return
    one, other = (tmp_path / name for name in ("True", "False"))
    assert list((one / "kept").rglob("ahead-*"))
    assert not list((other / "kept").rglob("ahead-*"))
    assert rows_without_time(one) == rows_without_time(other)
    assert final_bytes(one) == final_bytes(other)
    assert (one / "samples.jsonl").read_bytes() == (other / "samples.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("method", "copies"),
    [("dpo", 0), ("kto", 1), ("nca", 0), ("simpo", 0), ("tr-dpo", 1), ("tdpo", 1)],
)
def test_no_copy_is_made_that_nothing_asks_for(method, copies, tiny_llama, data, tmp_path,
                                               monkeypatch):  # fmt: skip
    seen = []
    freeze, again = LanguagePolicy.freeze, training.start_policy
    monkeypatch.setattr(LanguagePolicy, "freeze", lambda self: seen.append(1) or freeze(self))
    begun = []
    monkeypatch.setattr(training, "start_policy", lambda c: begun.append(1) or again(c))
    run = made(method, tiny_llama, data, tmp_path / "run", samples=0)
    train(declaration_of(method), run)
    assert (len(seen), len(begun)) == (copies, 1)


def test_the_plan_counts_the_copy_where_there_is_one(tiny_llama, data, tmp_path):
    sizes = {}
    for name, options in {"first": {}, "beside": {"precompute_references": False}}.items():
        run = made("dpo", tiny_llama, data, tmp_path / name, memory="4GB", **options)
        ready = prepare(declaration_of("dpo"), run, Silent())
        sizes[name] = ready.plan["memory_bytes"]
        assert ready.plan["precompute_references"] is (name == "first")
    policy = LanguagePolicy.from_pretrained(tiny_llama)
    weights = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    assert sizes["beside"] - sizes["first"] == pytest.approx(weights, abs=32 << 20)


@pytest.mark.parametrize("where", ["while it scores", "at each boundary"])
def test_a_run_that_is_interrupted_ends_alike_and_scores_nothing_twice(
    where, tiny_llama, data, tmp_path, monkeypatch
):
    dpo = declaration_of("dpo")
    train(dpo, made("dpo", tiny_llama, data, tmp_path / "whole"))
    run = made("dpo", tiny_llama, data, tmp_path / "parts")
    filled: list[str] = []
    fill, boundary = References.fill, FolderHooks.boundary

    def spy(self: References, batch: Any, part: object) -> Any:
        if str(part).startswith("ahead"):
            if where == "while it scores" and len(filled) in (1, 2):
                filled.append("stopped")
                raise Interrupted("Stopped.", "Continue.")
            filled.append(str(part))
        return fill(self, batch, part)

    def stop(self: FolderHooks, session: Any) -> None:
        if where == "at each boundary":
            self.stopping = "the test"
        boundary(self, session)

    monkeypatch.setattr(References, "fill", spy)
    monkeypatch.setattr(FolderHooks, "boundary", stop)
    for _ in range(20):
        try:
            train(dpo, run, resume=True)
            break
        except Interrupted:
            continue
    assert sorted(set(filled) - {"stopped"}) == ["ahead-0", "ahead-1", "ahead-2"]
    assert len([part for part in filled if part != "stopped"]) == 3
    assert final_bytes(tmp_path / "parts") == final_bytes(tmp_path / "whole")
    assert rows_without_time(tmp_path / "parts") == rows_without_time(tmp_path / "whole")


def test_a_short_run_scores_only_what_it_will_train_on(tiny_llama, data, tmp_path):
    run = made("dpo", tiny_llama, data, tmp_path / "run", max_steps=2)
    train(declaration_of("dpo"), run)
    kept = tmp_path / "run" / "kept" / "refs" / "stage-0" / "ref"
    assert sorted(path.name for path in kept.iterdir()) == ["ahead-0", "ahead-1", "eval"]


def test_samples_are_left_out_where_the_start_is_gone_and_the_model_is_kept(
    data, tmp_path, monkeypatch
):
    model = make_tiny_llama(tmp_path / "model")
    notes: list[str] = []
    monkeypatch.setattr(Silent, "note", lambda self, text: notes.append(text))
    step = FolderHooks.step

    def overwrite(self: FolderHooks, session: Any, row: Any) -> None:
        make_tiny_llama(model, seed=7)
        step(self, session, row)

    monkeypatch.setattr(FolderHooks, "step", overwrite)
    run = made("dpo", model, data, tmp_path / "run", max_steps=1)
    folder = train(declaration_of("dpo"), run)
    assert folder.finished
    assert not (folder / "samples.jsonl").exists()
    assert any("no longer the model that this run began with" in note for note in notes)


@pytest.mark.parametrize("method", ["simpo", "tdpo", "tr-dpo"])
@pytest.mark.parametrize("said", [True, False])
def test_it_is_refused_where_it_would_change_nothing(method, said, tiny_llama, data, tmp_path):
    run = made(method, tiny_llama, data, tmp_path / "run", precompute_references=said)
    with pytest.raises(OptionError, match="precompute_references=.* would have no effect"):
        train(declaration_of(method), run)


def test_the_model_that_is_read_again_must_be_the_one_of_the_plan(data, tmp_path):
    model = make_tiny_llama(tmp_path / "model")
    ready = prepare(declaration_of("dpo"), made("dpo", model, data, tmp_path / "run"), Silent())
    assert training._start_again(ready).trainable() == {}
    make_tiny_llama(model, seed=3)
    with pytest.raises(ModelError, match="Restore it"):
        training._start_again(ready)
