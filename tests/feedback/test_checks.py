"""What a check finds, and what a fix takes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyalign.errors import OptionError
from polyalign.feedback import Pair, Scored, Votes, agreement, check, fix, length_bias, read, stats
from polyalign.feedback.duplicates import Shingles, near_duplicates, similarity
from polyalign.feedback.statistics import Spread, wilson


def row(prompt: str = "p", chosen: str = "good answer", rejected: str = "bad", **more: Any) -> Any:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


CLEAN = [row(f"question {i}", f"right {i}", f"wrong {i}") for i in range(6)]
LONG = "the quick brown fox jumps over the lazy dog while seven wizards make toxic brew " * 3


def codes(rows: list[Any], **options: Any) -> dict[str, int]:
    return {finding.code: finding.count for finding in check(read(rows), **options).findings}


def test_clean_feedback_has_no_findings() -> None:
    report = check(read(CLEAN))
    assert report.findings == []
    assert not report.errors


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ([row("x", chosen=" \n")], "empty-completion"),
        ([row("x", rejected="")], "empty-completion"),
        ([row("x", "same", "same")], "identical-answers"),
        ([row("x", id="1"), row("x", id="2")], "exact-duplicate"),
        ([row("x", LONG, "b"), row("x", LONG + " end", "b")], "near-duplicate"),
        ([row("x", "a", "b"), row("x", "b", "a")], "contradiction"),
        ([{"prompt": "x", "chosen": "a"}], "malformed"),
        ([row(" ")], "empty-prompt"),
    ],
)
def test_each_fault_is_found(bad: list[Any], code: str) -> None:
    assert code in codes(CLEAN + bad)


def test_a_shared_long_prompt_is_no_near_duplicate() -> None:
    assert "near-duplicate" not in codes([row(LONG, "yes sir", "no"), row(LONG, "never", "maybe")])


def test_one_answer_called_good_and_bad_is_a_contradiction() -> None:
    rows = [{"prompt": "p", "completion": "c", "label": flag} for flag in (True, False)]
    assert codes(rows)["contradiction"] == 2
    assert codes(rows[:1] + [{**rows[0], "prompt": "q"}])["one-label"] == 2


def test_prompts_shared_with_the_other_part_are_errors() -> None:
    report = check(read(CLEAN), against=read([row("question 3"), row("another")]))
    assert report.count("shared-prompts") == 1
    assert report.errors


def test_empty_answers_of_votes_are_data_and_stay() -> None:
    votes = [{"prompt": "p", "responses": ["", "b"], "annotations": [{"label": "b"}]}]
    feedback = read(votes)
    report = check(feedback)
    assert report.finding("empty-completion").level == "warning"
    assert len(fix(feedback, report).clean) == 1


def test_examples_say_where() -> None:
    (example,) = (
        check(read([*CLEAN, row("x", "same", "same")])).finding("identical-answers").examples
    )
    assert example["row"] == 7
    assert example["key"]


def test_a_report_is_plain_data_and_plain_lines() -> None:
    report = check(read([*CLEAN, row("x", "same", "same")]))
    assert json.loads(json.dumps(report.to_dict()))["errors"] is True
    text = "\n".join(report.render())
    assert "identical-answers: chosen equal to rejected: 1 of 7 rows (14.3%)" in text
    assert "1 error, 0 warnings" in text


def test_length_bias_counts_decided_pairs_with_a_wilson_interval() -> None:
    pairs = [Pair(key=str(i), prompt="p", chosen="long", rejected="s") for i in range(8)]
    pairs += [Pair(key="e", prompt="p", chosen="ab", rejected="cd")]
    pairs += [Pair(key=f"r{i}", prompt="p", chosen="s", rejected="long") for i in range(2)]
    bias = length_bias(pairs)
    assert (bias.longer_won, bias.decided, bias.equal) == (8, 10, 1)
    assert bias.interval == wilson(8, 10)
    # Wilson's interval for 8 of 10, as in Newcombe (1998).
    assert bias.interval == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


def test_a_strong_length_bias_is_a_warning() -> None:
    rows = [row(f"question {i}", f"a much longer answer {i}", f"no {i}") for i in range(60)]
    found = check(read(rows), near=False).finding("length-bias")
    assert (found.level, found.share) == ("warning", 1.0)


def test_agreement_and_alpha_of_known_votes() -> None:
    def votes(key: str, *outcomes: float) -> Votes:
        cast = tuple((f"w{i}", 0, 1, o) for i, o in enumerate(outcomes))
        return Votes(key=key, prompt="p", completions=("a", "b"), votes=cast)

    found = agreement([votes("1", 1.0, 1.0), votes("2", 0.0, 0.0), votes("3", 1.0, 0.0)])
    assert found.agreement == pytest.approx(2 / 3)
    # Krippendorff, nominal: D_o = 2/6, D_e = 1 - (3*2 + 3*2)/(6*5) = 3/5.
    assert found.alpha == pytest.approx(1 - (2 / 6) / (3 / 5))
    assert agreement([votes("1", 1.0, 0.5)]).tie_share == 0.5


def test_fix_keeps_every_removed_row_whole_with_its_reason(
    jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    path = jsonl(
        *CLEAN,
        row("x", "same", "same", note=[1]),
        {"prompt": "p"},
        "oops",
        CLEAN[0],
        name="in.jsonl",
    )
    feedback = read(path)
    fixed = fix(feedback, check(feedback))
    clean, rejects = fixed.write(tmp_path / "out.jsonl")
    assert [json.loads(line) for line in clean.read_text().splitlines()] == CLEAN
    lines = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [(line["row"], line["field"]) for line in lines] == [
        (8, "chosen"),
        (9, "row"),
        (7, "identical-answers"),
        (10, "exact-duplicate"),
    ]
    assert lines[2]["raw"] == row("x", "same", "same", note=[1])
    assert not check(read(clean)).errors


def test_fix_takes_out_only_what_is_asked_for() -> None:
    feedback = read([*CLEAN, row("x", "same", "same"), CLEAN[0]])
    report = check(feedback)
    assert len(fix(feedback, report, ["exact-duplicate"]).clean) == 7
    with pytest.raises(OptionError, match="Did you mean exact-duplicate"):
        fix(feedback, report, ["exact-duplicates"])


def test_near_duplicates_are_found_among_many() -> None:
    import random

    rng = random.Random(0)
    words = [f"w{i}" for i in range(500)]
    texts = [" ".join(rng.choices(words, k=60)) for _ in range(400)]
    copies = {}
    for i in range(0, 400, 20):
        parts = texts[i].split()
        parts[30] = "changed"
        copies[len(texts)] = i
        texts.append(" ".join(parts))
    records = [read([{"prompt": text}])[0] for text in texts]
    found = {(j, i) for i, j, _ in near_duplicates(records)}
    assert found == set(copies.items())


def test_shingles_do_not_depend_on_place_case_or_punctuation() -> None:
    shingles = Shingles()
    a, b = shingles.of("One two, three four."), shingles.of("  one TWO three\nfour!")
    assert similarity(a, b) == 1.0
    longer = shingles.of("zero one two three four")
    assert similarity(a, longer) == pytest.approx(2 / 3)
    assert similarity(a, shingles.of("four three two one")) == 0.0


def test_stats_say_what_a_set_holds() -> None:
    rows = [
        Scored(key=str(i), prompt=f"p{i % 2}", completions=("aa", "b"), scores=(1.0, float(i)))
        for i in range(4)
    ]
    found = stats(rows)
    assert (found.rows, found.prompts, found.kind) == (4, 2, "scored")
    assert found.counts["rows with tied scores"] == 1
    assert found.numbers["score"].high == 3.0
    assert any("different" in line for line in found.render())
    assert Spread.of([1.0, 2.0, 3.0]).median == 2.0
