"""Runs of methods that write into prompts, draw tokens or embed: variants, samples, resuming."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from polyalign.api import declaration_of, evaluate, sample
from polyalign.errors import DataError, Interrupted, ModelError, OptionError
from polyalign.loops.embedding import Embed
from polyalign.policies.language.embedding import SentenceEncoder, states_mean
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.reports.model_card import write_model_card
from polyalign.reports.tables import evaluation_table
from polyalign.runs import plan
from polyalign.runs.folder import FolderHooks
from polyalign.runs.training import train
from tests.cli.kit import run as command
from tests.runs.kit import config, final_bytes
from tests.runs.test_every_method import row


@pytest.fixture(autouse=True)
def no_estimate(monkeypatch):
    monkeypatch.setattr(plan, "_speed", lambda device: 1e9)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row("pairs", i)) for i in range(8)), "utf-8")
    return path


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scored") / "scored.jsonl"
    path.write_text("\n".join(json.dumps(row("scored", i)) for i in range(4)), "utf-8")
    return path


def go(id, model, data, output, resume=False, **options):
    options = {"max_steps": 2, "epochs": 1, "batch": 4, "samples": 0} | options
    return train(declaration_of(id), config(id, model, data, output, **options), resume=resume)


@pytest.mark.parametrize(
    ("id", "options"),
    [
        ("wpo", {"alignment": "greedy"}),
        ("sampo", {"shared_mask": False, "iterations": 2, "max_steps": None, "epochs": 2}),
        ("bmc", {"form": "code", "delta": 2.0}),
        ("dpo-kernels", {"kernel": "mixture", "divergence": "renyi"}),
        ("dpo-kernels", {"kernel": "mahalanobis", "divergence": "js"}),
        ("implicit-reward-sft", {"f": "js"}),
    ],
)
def test_variants_train(id, options, pairs, tiny_llama, tmp_path):
    run = go(id, tiny_llama, pairs, tmp_path / "run", **options)
    rows = run.metrics()
    assert rows[-1]["grad_norm"] > 0
    assert all(math.isfinite(v) for r in rows for v in r.values() if isinstance(v, float))


@pytest.mark.parametrize("form", ["filter", "best", "rwr"])
def test_forms_over_scored_answers_train(form, scored, tiny_llama, tmp_path):
    run = go("offline-rlhf", tiny_llama, scored, tmp_path / "run", form=form, max_steps=None)
    # Four prompts with three answers each: a third, a fifth (and ties) or all of them are learnt.
    answers = {"filter": 3, "best": 4, "rwr": 12}[form]
    assert len(run.metrics()) == math.ceil(answers / 4)


def asked(run) -> str:
    line = json.loads((run.path / "samples.jsonl").read_text().splitlines()[0])
    return json.dumps(line["prompt"])


def test_a_policy_conditioned_on_goals_or_rewards_is_asked_for_the_best(
    pairs, scored, tiny_llama, tmp_path
):
    options = {"samples": 1, "max_new_tokens": 2}
    goals = go("reward-augmented", tiny_llama, pairs, tmp_path / "goals", **options)
    assert "overall quality is 10 on a scale from 1 to 10" in asked(goals)
    rewards = go("offline-rlhf", tiny_llama, scored, tmp_path / "rewards", **options)
    # The largest of the twelve scores, standardised: 6 among 3, 4, 5, 6 and four times 1 and 2.
    scores = [3.0, 4.0, 5.0, 6.0, *[1.0] * 4, *[2.0] * 4]
    mean = sum(scores) / 12
    spread = math.sqrt(sum((s - mean) ** 2 for s in scores) / 12)
    assert f"<rm_score>: {(6.0 - mean) / spread:.2f} " in asked(rewards)


@pytest.fixture
def seen(monkeypatch):
    """The contexts that language models are asked, as they are asked."""
    contexts: list[str] = []
    inner = LanguagePolicy.sample

    def sample(policy, asked, *rest):
        contexts.extend(json.dumps(c) for c in asked)
        return inner(policy, asked, *rest)

    monkeypatch.setattr(LanguagePolicy, "sample", sample)
    return contexts


QUALITY = "overall quality is {} on a scale from 1 to 10"


def test_sample_and_evaluate_ask_with_the_condition_that_lies_beside_the_model(
    pairs, tiny_llama, tmp_path, seen
):
    run = go("reward-augmented", tiny_llama, pairs, tmp_path / "run").path
    write_model_card(run)
    card = (run / "final" / "README.md").read_text("utf-8")
    assert QUALITY.format("{}") in card
    assert QUALITY.format(10) in card
    few = {"samples": 2, "max_new_tokens": 2}
    for folder in (run, run / "final"):
        seen.clear()
        sample(folder, ["Say hi."], max_new_tokens=2)
        assert QUALITY.format(10) in seen[0]
    sample(run, ["Say hi."], max_new_tokens=2, condition=4)
    assert QUALITY.format(4) in seen[-1]
    sample(run, ["Say hi."], max_new_tokens=2, condition="none")
    assert "quality" not in seen[-1]

    seen.clear()
    found = evaluate(run, str(pairs), judge=lambda prompt, completion: 1.0, **few)
    count = len(found["judge"]["answers"])
    mine, theirs = seen[:-count], seen[-count:]
    assert all(QUALITY.format(10) in context for context in mine)
    assert not any("quality" in context for context in theirs)  # the start is asked as it was
    assert not any("quality" in line["prompt"] for line in found["judge"]["answers"])
    assert found["condition"]["value"] == 10.0
    assert QUALITY.format(10) in evaluation_table(found).caption
    other = evaluate(run, str(pairs), condition="3", samples=0, save=False)
    assert other["condition"]["value"] == 3.0
    plain = evaluate(run, str(pairs), condition="none", samples=0, save=False)
    assert "condition" not in plain
    assert other["ranking"] != plain["ranking"]


def test_a_condition_off_the_scale_or_of_a_model_without_one_is_refused(
    pairs, tiny_llama, tmp_path
):
    run = go("reward-augmented", tiny_llama, pairs, tmp_path / "run").path
    with pytest.raises(OptionError, match="lies outside the scale from 1 to 10"):
        sample(run, ["Say hi."], condition=11)
    with pytest.raises(OptionError, match="condition=best is no number"):
        evaluate(run, str(pairs), condition="best")
    with pytest.raises(OptionError, match="was not trained with a condition"):
        sample(tiny_llama, ["Say hi."], condition=3)
    argv = ("sample", str(run), "Say hi.", "--max-new-tokens", "1")
    assert (
        QUALITY.format(7)
        in json.loads(command(*argv, "--condition", "7", "--json").out)[0]["condition"]
    )
    told = " ".join(command(*argv).err.split())
    assert f"asked with: Give an answer whose {QUALITY.format(10)}" in told


@pytest.mark.parametrize("id", ["sampo", "dpo-kernels"])
def test_a_stopped_run_goes_on_bit_for_bit(id, pairs, tiny_llama, tmp_path, monkeypatch):
    options = {"epochs": 3, "max_steps": None, "save_every": 1}
    options |= {"kernel": "mixture"} if id == "dpo-kernels" else {}
    whole = go(id, tiny_llama, pairs, tmp_path / "whole", **options)
    boundary = FolderHooks.boundary

    def stop(hooks, session):
        boundary(hooks, session)
        if session.position["step"] == 3:
            raise Interrupted("Stopped by the test.")

    monkeypatch.setattr(FolderHooks, "boundary", stop)
    with pytest.raises(Interrupted):
        go(id, tiny_llama, pairs, tmp_path / "parts", **options)
    monkeypatch.setattr(FolderHooks, "boundary", boundary)
    again = go(id, tiny_llama, pairs, tmp_path / "parts", resume=True, **options)
    assert final_bytes(again.path) == final_bytes(whole.path)


def test_tokens_are_drawn_alike_in_micro_batches_and_anew_in_each_epoch(
    pairs, tiny_llama, tmp_path
):
    options = {"epochs": 2, "max_steps": None, "batch": 8, "lr": 1e-12}
    one = go("sampo", tiny_llama, pairs, tmp_path / "one", **options)
    cut = go("sampo", tiny_llama, pairs, tmp_path / "cut", micro=60, **options)
    for a, b in zip(one.metrics(), cut.metrics(), strict=True):
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    first, second = (r["grad_norm"] for r in one.metrics())
    assert first != pytest.approx(second, rel=1e-3)


def test_bvpo_refuses_pairs_of_one_kind(pairs, tiny_llama, tmp_path):
    one = tmp_path / "one.jsonl"
    rows = [dict(row("pairs", i), trace=1) for i in range(4)]
    one.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with pytest.raises(DataError, match="No pair has trace=0"):
        go("bvpo", tiny_llama, one, tmp_path / "run")
    none = tmp_path / "none.jsonl"
    for each in rows:
        del each["trace"]
    none.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with pytest.raises(DataError, match="does not say whether it is of the first kind"):
        go("bvpo", tiny_llama, none, tmp_path / "other")


def test_a_text_is_embedded_alike_whatever_stands_beside_it(tiny_llama):
    policy = LanguagePolicy.from_pretrained(tiny_llama, dtype="float32", frozen=True)
    texts = ["hello there", "a", "something longer than the others"]
    together = states_mean(policy, [*texts, ""])
    for i, text in enumerate(texts):
        assert states_mean(policy, [text])[0] == pytest.approx(together[i], abs=1e-5)
    assert together[3].abs().max() == 0
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_a_sentence_encoder_of_a_folder_embeds_and_a_wrong_one_is_told(tiny_llama, tmp_path, pairs):
    encoder = SentenceEncoder(tiny_llama)
    both = encoder(["hello there", "a"])
    assert encoder(["a"])[0] == pytest.approx(both[1], abs=1e-5)
    with pytest.raises(ModelError, match="does not load"):
        SentenceEncoder(tmp_path)
    run = go("dpo-kernels", tiny_llama, pairs, tmp_path / "run", encoder=str(tiny_llama))
    assert run.metrics()[-1]["divergence"] >= 0
    assert Embed(str(tiny_llama)).held_out


@pytest.mark.parametrize(("form", "steps"), [("dt", 12), ("rwr", 12), ("filter", 3), ("best", 4)])
def test_the_plan_counts_every_answer_as_an_example(form, steps, scored, tiny_llama, tmp_path):
    run = go("offline-rlhf", tiny_llama, scored, tmp_path / "run", form=form, max_steps=None,
             batch=1)  # fmt: skip
    assert run.plan()["steps"] == len(run.metrics()) == steps
    every = go("offline-rlhf", tiny_llama, scored, tmp_path / "all", max_steps=1).plan()["tokens"]
    assert run.plan()["tokens"] > 0
    if form in ("filter", "best"):
        assert run.plan()["tokens"] < 12 * every
