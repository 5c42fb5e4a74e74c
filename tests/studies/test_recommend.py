import json
from pathlib import Path

import pytest

from polyalign.errors import DataError
from polyalign.studies.recommend import look, noise, recommend
from tests.runs.kit import write_pairs, write_prompts


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return str(path)


def ids(found: dict, part: str) -> list[str]:
    return [advice["id"] for advice in found[part]]


def test_pairs_get_pair_methods_first_and_a_comparison_to_run(tmp_path):
    found = recommend(str(write_pairs(tmp_path / "pairs.jsonl", 40)))
    assert found["recommended"][0]["id"] == "dpo"
    assert found["recommended"][0]["route"] == "as it is"
    assert found["next"].startswith("polyalign compare dpo")
    assert "iopo" in found["unfit"]["quadruples"]


def test_every_held_training_method_stands_in_one_place(tmp_path):
    from polyalign.methods import catalogue

    found = recommend(str(write_pairs(tmp_path / "pairs.jsonl", 10)))
    placed = ids(found, "recommended") + ids(found, "also") + ids(found, "missing")
    placed += [id for group in found["unfit"].values() for id in group]
    trained = [id for id, entry in catalogue().items() if entry["kind"] == "train"]
    assert sorted(placed) == sorted(trained)


def test_a_taste_for_length_brings_methods_that_act_against_it(tmp_path):
    rows = [{"prompt": f"q{i}", "chosen": "long " * 9 + str(i), "rejected": f"no {i}"}
            for i in range(60)]  # fmt: skip
    found = recommend(write(tmp_path / "long.jsonl", rows))
    assert any("taste for longer" in r for a in found["recommended"] for r in a["reasons"])
    even = [r if i % 2 else {**r, "chosen": r["rejected"], "rejected": r["chosen"]}
            for i, r in enumerate(rows)]  # fmt: skip
    other = recommend(write(tmp_path / "even.jsonl", even))
    assert not any("taste" in r for a in other["recommended"] for r in a["reasons"])


def test_lists_bring_methods_that_read_lists(tmp_path):
    rows = [{"prompt": f"q{i}", "completions": ["a b", "c", "d e f", "g"], "scores": [3, 1, 2, 0]}
            for i in range(30)]  # fmt: skip
    found = recommend(write(tmp_path / "lists.jsonl", rows))
    first = found["recommended"][0]
    assert any("reads whole lists" in r for a in found["recommended"][:3] for r in a["reasons"])
    assert first["route"] == "as it is"
    assert found["facts"]["list_size"] == 4


def test_unequal_thumbs_bring_methods_that_weigh_them(tmp_path):
    rows = [{"prompt": f"q{i}", "completion": f"a{i}", "label": i % 10 == 0} for i in range(50)]
    found = recommend(write(tmp_path / "thumbs.jsonl", rows))
    assert found["facts"]["balance"] == pytest.approx(0.1)
    assert {"kto", "bco"} & set(ids(found, "recommended"))
    assert any("unequal" in r for a in found["recommended"] for r in a["reasons"])


def test_prompts_need_a_judge_or_a_verifier(tmp_path):
    path = str(write_prompts(tmp_path / "prompts.jsonl", 8))
    assert "grpo" in ids(recommend(path), "missing")
    assert "grpo" in ids(recommend(path, judge=True), "recommended")


def test_the_noise_of_votes_follows_from_their_agreement(tmp_path):
    # Three voters who are each wrong with probability e: two agree with probability
    # (1-e)^2 + e^2; here 5 of 9 pairs of votes agree, so e = (1 - sqrt(1/9)) / 2 = 1/3.
    rows = []
    for i, outcomes in enumerate([("first", "first", "first"), ("first", "first", "second"),
                                  ("second", "first", "second")]):  # fmt: skip
        for j, winner in enumerate(outcomes):
            rows.append((i, f"w{j}", winner))
    from polyalign.feedback.records import Votes
    from polyalign.feedback.table import FeedbackSet

    records = [
        Votes(
            key=str(i),
            prompt=f"q{i}",
            completions=("a", "b"),
            votes=tuple(
                (who, 0, 1, 1.0 if won == "first" else 0.0) for n, who, won in rows if n == i
            ),
        )
        for i in range(3)
    ]
    rate, source = noise(FeedbackSet.of(records), 0, 3)
    assert rate == pytest.approx(1 / 3)
    assert "agree" in source


def test_it_says_what_it_cannot_know(tmp_path):
    found = recommend(str(write_pairs(tmp_path / "pairs.jsonl", 10)), budget=1000)
    told = " ".join(found["unknown"])
    assert "Which of these methods would win" in told
    assert "How many labels are wrong" in told
    assert "--model" in told
    assert "passes" in told


def test_a_model_adds_memory_and_a_probe(tmp_path, tiny_llama):
    found = recommend(str(write_pairs(tmp_path / "pairs.jsonl", 20)), model=str(tiny_llama))
    assert found["facts"]["memory"]["parameters"] > 0
    assert 0 <= found["facts"]["probe"]["base_ranking"] <= 1
    assert any("Probe" in line for line in found["seen"])


def test_empty_data_is_told(tmp_path):
    with pytest.raises(DataError):
        recommend(write(tmp_path / "none.jsonl", []))


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "kind"),
    [("hh_harmless", "pairs"), ("llmfao", "votes"), ("multi_scores", "scored"),
     ("binary_feedback", "binary"), ("sft", "demonstrations"), ("qa_feedback", "votes")],
)  # fmt: skip
def test_real_feedback_gets_advice_with_reasons(shared_data, name, kind):
    from polyalign.feedback import read

    found = read([str(shared_data / name / "train.jsonl.gz")], limit=60)
    facts = look(found)
    assert facts.rows == len(found)
    advice = recommend(str(shared_data / name / "train.jsonl.gz"), limit=60)
    assert advice["recommended"]
    assert all(a["reasons"] for a in advice["recommended"])
    assert advice["facts"]["kind"] == kind
