"""Every relative of DPO trains a language model from files, to its theoretical side."""

import json
import math

import pytest

import polyalign
from polyalign.api import plan
from polyalign.errors import DataError
from polyalign.methods.build_index import declarations
from tests.cli.kit import run as command
from tests.methods.by_hand import close

FAMILIES = ("margins", "lengths", "shapes", "anchors", "third_answers")
NEW = [id for id, d in declarations().items() if d.family.removeprefix("direct_") in FAMILIES]
WRONG_WAY_AT_THE_START = {"discopop"}
MOSTLY_IMITATION = {"cpo", "triple-po"}


def rows(*others):
    def says(text):
        return [{"role": "assistant", "content": text}]

    answers = {
        "chosen": lambda i: says("good " * (1 + i % 3) + str(i)),
        "rejected": lambda i: says("bad " * (1 + i % 4)),
        "gold": lambda i: says("great " * (1 + i % 2) + str(i)),
        "source_chosen": lambda i: says("fine " * (1 + i % 3) + str(i)),
    }
    for i in range(8):
        row = {name: answers[name](i) for name in ("chosen", "rejected", *others)}
        yield {"prompt": [{"role": "user", "content": f"Say {i}"}], **row}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("triples") / "triples.jsonl"
    path.write_text("\n".join(map(json.dumps, rows("gold", "source_chosen"))), "utf-8")
    return path


@pytest.mark.parametrize("id", NEW)
def test_it_trains_from_a_file_and_its_margin_grows(id, data, tiny_llama, tmp_path):
    made = polyalign.train(
        id, model=str(tiny_llama), data=str(data), output=tmp_path / "run", batch=8, epochs=3,
        lr=5e-3, samples=0, save_every=0, threads=1,
    )  # fmt: skip
    seen = made.metrics
    assert len(seen) == 3
    assert all(math.isfinite(row["loss"]) for row in seen)
    assert (made.folder / "final").is_dir()
    if id not in MOSTLY_IMITATION:
        assert seen[-1]["loss"] < seen[0]["loss"]
        side = -1 if id in WRONG_WAY_AT_THE_START else 1
        assert side * (seen[-1]["rewards/margins"] - seen[0]["rewards/margins"]) > 0
    else:
        assert seen[-1]["nll_loss"] < seen[0]["nll_loss"]


def test_the_command_line_trains_two_winners_along_a_schedule(data, tiny_llama, tmp_path):
    said = command(
        "train", "wrpo", "--model", str(tiny_llama), "--data", str(data),
        "--output", str(tmp_path / "run"), "--batch", "4", "--epochs", "2", "--samples", "0",
        "beta=0.1",
    )  # fmt: skip
    assert said.status == 0, said.err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    seen = [json.loads(line) for line in lines]
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["hyper"]["alpha"] == "0->0.1"
    close(seen[0]["loss"], math.log(2), 1e-6)
    assert all("rewards/source_chosen" in row for row in seen)


@pytest.mark.parametrize(("id", "column"), [("triple-po", "gold"), ("wrpo", "source_chosen")])
def test_pairs_without_the_third_answer_are_refused_by_its_name(id, column, tiny_llama, tmp_path):
    plain = tmp_path / "pairs.jsonl"
    plain.write_text("\n".join(map(json.dumps, rows())), "utf-8")
    with pytest.raises(DataError, match=f"it has no column '{column}'"):
        plan(id, model=str(tiny_llama), data=str(plain))


def test_a_pair_that_lacks_the_third_answer_is_left_out_and_listed(tiny_llama, tmp_path):
    some = [*rows("gold")]
    del some[3]["gold"]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join(map(json.dumps, some)), "utf-8")
    made = polyalign.train(
        "triple-po", model=str(tiny_llama), data=str(mixed), output=tmp_path / "run",
        max_steps=1, samples=0, save_every=0, threads=1,
    )  # fmt: skip
    assert made.plan["records"] == 7
    (refused,) = (made.folder / "rejects.jsonl").read_text("utf-8").splitlines()
    assert "it has no column 'gold'" in refused


def test_scored_answers_become_triples(tiny_llama, tmp_path):
    scored = tmp_path / "scored.jsonl"
    answers = ["best of all", "second", "third", "worst"]
    row = {"prompt": "Say", "completions": answers, "scores": [4.0, 3.0, 2.0, 1.0]}
    scored.write_text("\n".join(json.dumps({**row, "prompt": f"Say {i}"}) for i in range(4)))
    pairs = tmp_path / "triples.jsonl"
    said = command("data", "pair", str(scored), "--rule", "second-worst", "--output", str(pairs))
    assert said.status == 0, said.err
    first = json.loads(pairs.read_text("utf-8").splitlines()[0])
    assert (first["gold"], first["chosen"], first["rejected"]) == (answers[0], "second", "worst")
    assert plan("triple-po", model=str(tiny_llama), data=str(pairs))["plan"]["records"] == 4
