"""Files, folders, keys, rejects and whole-file mistakes."""

from __future__ import annotations

import gzip
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyalign.errors import DataError
from polyalign.feedback import FeedbackSet, Pair, read, write

ROWS = [
    {"id": f"r{i}", "prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"}
    for i in range(5)
]
GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    "name",
    [
        "x.jsonl",
        "x.jsonl.gz",
        "x.json",
        "x.json.gz",
        "x.csv",
        "x.csv.gz",
        "x.tsv",
        "x.parquet",
        "folder",
    ],
)
def test_every_file_kind_gives_back_what_was_written(name: str, tmp_path: Path) -> None:
    expected = list(read(ROWS))
    found = read(write(ROWS, tmp_path / name))
    assert list(found) == expected
    assert found.kind is Pair


def test_conversations_survive_every_file_kind(tmp_path: Path) -> None:
    turn = {"role": "user", "content": 'say "hi",\nplease'}
    rows = [
        {
            "prompt": [turn],
            "chosen": [{"role": "assistant", "content": "[1] hi"}],
            "rejected": [{"role": "assistant", "content": "no"}],
            "margin": 0.5,
        }
    ]
    for name in ("c.jsonl", "c.csv", "c.parquet", "c"):
        assert list(read(write(rows, tmp_path / name))) == list(read(rows)), name


def test_a_folder_is_read_by_its_parts(tmp_path: Path) -> None:
    write(ROWS[:3], tmp_path / "train.jsonl.gz")
    write(ROWS[3:], tmp_path / "test.jsonl.gz")
    assert len(read(tmp_path)) == 3
    assert [r.key for r in read(tmp_path, split="test")] == ["r3", "r4"]
    with pytest.raises(DataError, match="no part called 'tset'.*Did you mean test"):
        read(tmp_path, split="tset")


def test_a_saved_dataset_dict_is_read_by_its_parts(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    parts = {name: datasets.Dataset.from_list(ROWS[:n]) for name, n in (("train", 3), ("test", 2))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert len(read(tmp_path / "saved")) == 3
    assert len(read(tmp_path / "saved", split="test")) == 2
    with pytest.raises(DataError, match="no part called 'dev'"):
        read(tmp_path / "saved", split="dev")


def test_several_files_make_one_set(tmp_path: Path) -> None:
    paths = [write(ROWS[:2], tmp_path / "a.jsonl"), write(ROWS[2:], tmp_path / "b.csv")]
    feedback = read(paths)
    assert [r.key for r in feedback] == [f"r{i}" for i in range(5)]
    assert feedback.place(2) == (str(paths[1]), 2)


def test_own_ids_are_keys_only_where_they_are_unique() -> None:
    rows = [{**GOOD, "id": 1}, {**GOOD, "id": 2, "prompt": "q"}, {**GOOD, "id": 2}, GOOD]
    keys = [record.key for record in read(rows)]
    assert keys[0] == "1"
    assert "2" not in keys
    assert len(set(keys)) == 4


def test_keys_do_not_depend_on_order_or_on_other_rows() -> None:
    rows = [{"prompt": f"p{i}", "completion": "c"} for i in range(4)]
    keys = {record.prompt: record.key for record in read(rows)}
    for record in read(rows[::-1][:3]):
        assert record.key == keys[record.prompt]


BAD: list[tuple[Any, str, str]] = [
    ({"prompt": "p", "chosen": "a"}, "rejected", "is missing"),
    ({"prompt": "p", "chosen": "a", "rejected": None}, "rejected", "is null"),
    ({"prompt": "p", "chosen": 3, "rejected": "b"}, "chosen", "not a number"),
    ({"prompt": "p", "chosen": [], "rejected": "b"}, "chosen", "is an empty list"),
    ({"prompt": "p", "chosen": "a", "rejected": "b", "margin": math.nan}, "margin", "nan"),
    ({"prompt": "p", "chosen": "a", "rejected": "b", "weight": -1}, "weight", "negative"),
    ({"prompt": "p", "chosen": [{"content": "a"}], "rejected": "b"}, "chosen[0]", "has no role"),
    ("{not json", "row", "is not JSON"),
    ("[1, 2]", "row", "is a list, not an object"),
]


@pytest.mark.parametrize(("bad", "field", "reason"), BAD, ids=[f"{b[1]} {b[2]}" for b in BAD])
def test_a_bad_row_is_rejected_with_file_line_field_and_reason(
    bad: Any, field: str, reason: str, jsonl: Callable[..., Path]
) -> None:
    path = jsonl(GOOD, "", bad, GOOD)
    feedback = read(path)
    assert len(feedback) == 2
    (reject,) = feedback.rejects
    assert (reject.file, reject.row, reject.field) == (str(path), 3, field)
    assert reason in reject.reason
    assert reject.raw == (bad if isinstance(bad, str) else json.loads(json.dumps(bad))) or (
        field == "margin"
    )
    assert read(path).rejects[0].reason == reject.reason, "the cache keeps rejects"


SCORES = {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]}


@pytest.mark.parametrize(
    ("good", "change", "field"),
    [
        (SCORES, {"scores": [1, None]}, "scores[1]"),
        (SCORES, {"scores": [1, math.inf]}, "scores[1]"),
        (SCORES, {"scores": [1]}, "scores"),
        (SCORES, {"completions": []}, "completions"),
        ({"prompt": "p", "completion": "c", "label": True}, {"label": "yes"}, "label"),
        # A label of -100 is a mask elsewhere, and must not become "good" by a cast.
        ({"prompt": "p", "completion": "c", "label": True}, {"label": -100}, "label"),
        ({"prompt": "p", "completions": ["a"], "labels": [True]}, {"labels": [2]}, "labels[0]"),
        (
            {"prompt": "p", "responses": ["a", "b"], "annotations": [{"label": "a"}]},
            {"annotations": [{"label": "c"}]},
            "annotations[0].label",
        ),
    ],
)
def test_scores_and_labels_are_never_guessed(
    good: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    feedback = read([good, {**good, **change}])
    assert len(feedback) == 1
    assert feedback.rejects[0].field == field


def test_csv_rows_keep_their_line_and_wrong_cell_counts_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('prompt,completion,label\n"a\nb",c,true\np,c\nq,d,False\n', encoding="utf-8")
    feedback = read(path)
    assert [(r.prompt, r.label) for r in feedback] == [("a\nb", True), ("q", False)]
    assert feedback.place(1) == (str(path), 5)
    assert feedback.rejects[0].row == 4
    assert "2 cells under a header of 3" in feedback.rejects[0].reason


def damaged(tmp_path: Path, name: str, data: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


PACKED = gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("e.jsonl", b"", "is empty"),
        ("l.jsonl", b'{"prompt": "caf\xe9", "completion": "c"}\n', r"not UTF-8 \(line 1\).*iconv"),
        ("l.csv", b"prompt,completion\ncaf\xe9,c\n", "not UTF-8.*iconv"),
        ("t.jsonl.gz", PACKED[:-12], "truncated gzip.*gzip -t"),
        ("n.jsonl", b"hello\nworld\n", "not JSON Lines"),
        ("n.json", b"{'prompt': 1}", "is not JSON"),
        ("n.parquet", b"PAR?", "not Parquet, or damaged"),
        ("n.txt", b"hello", "of no kind that can be read"),
        ("c.jsonl", b'{"foo": 1, "bar": 2}\n', r"found: foo, bar.*prompt, chosen, rejected"),
        ("h.csv", b"prompt,completion\n", "has no rows"),
        ("r.jsonl", b'{"prompt": 1, "chosen": 2, "rejected": 3}\n', "none of its rows"),
    ],
)
def test_a_whole_file_mistake_is_one_sentence_with_its_mend(
    name: str, data: bytes, message: str, tmp_path: Path
) -> None:
    path = damaged(tmp_path, name, data)
    with pytest.raises(DataError, match=message) as error:
        read(path)
    assert error.value.mend
    assert name in str(error.value)


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    write(ROWS, tmp_path / "train.jsonl")
    with pytest.raises(DataError, match="no file .*tarin.jsonl.*Did you mean train.jsonl"):
        read(tmp_path / "tarin.jsonl")
    with pytest.raises(DataError, match="its folder .* does not exist"):
        read(tmp_path / "nowhere" / "train.jsonl")


def test_a_hub_name_that_cannot_be_had_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def refuse(name: str) -> None:
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match="no file or folder owner/pairs, and the hub gave no set"):
        read("owner/pairs")


def test_a_hub_set_is_read_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: loaded)
    assert list(read("owner/pairs")) == list(read(ROWS))


def test_mixed_formats_are_an_error_that_names_both(jsonl: Callable[..., Path]) -> None:
    other = {"prompt": "p", "completion": "c", "label": True}
    with pytest.raises(DataError, match="mixed: 2 rows are TRL preference.*1 are TRL unpaired"):
        read(jsonl(GOOD, GOOD, other))
    turns = [{"role": "user", "content": "p"}]
    with pytest.raises(DataError, match="mixed: 2 rows .* 1 are conversations"):
        read(jsonl({"prompt": "p"}, {"prompt": "q"}, {"prompt": turns}, name="b.jsonl"))


def test_rows_are_read_lazily_from_a_memory_mapped_cache(jsonl: Callable[..., Path]) -> None:
    path = jsonl(*({"prompt": f"p{i}", "completion": "c"} for i in range(2500)))
    feedback = read(path)
    again = read(path)
    assert len(again) == 2500
    assert again[2499].prompt == "p2499"
    assert again[-1] == feedback[2499]
    assert [r.prompt for r in again[1000:1002]] == ["p1000", "p1001"]
    assert list(pickle.loads(pickle.dumps(again)))[1234] == feedback[1234]
    with pytest.raises(IndexError):
        again[2500]


def test_a_changed_file_is_read_anew(jsonl: Callable[..., Path]) -> None:
    assert len(read(jsonl(GOOD))) == 1
    assert len(read(jsonl(GOOD, {**GOOD, "prompt": "longer"}))) == 2


def test_limit_reads_so_many_rows(jsonl: Callable[..., Path]) -> None:
    path = jsonl(*ROWS)
    assert len(read(path, limit=2)) == 2
    assert len(read(path)) == 5
    with pytest.raises(DataError, match="limit is 0"):
        read(path, limit=0)


def test_a_cache_that_cannot_be_written_names_the_variable(
    jsonl: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="Cannot write the cache.*POLYALIGN_CACHE"):
        read(jsonl(GOOD))


def test_an_interrupted_reading_leaves_no_half_cache(
    jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError):
        read(damaged(tmp_path, "t.jsonl.gz", PACKED[:-12]))
    assert list((tmp_path / "cache" / "feedback").iterdir()) == []


def test_records_of_several_kinds_are_no_set() -> None:
    mixed = [*read(ROWS), *read([{"prompt": "p"}])]
    with pytest.raises(DataError, match=r"several kinds \(pairs, prompts\)"):
        FeedbackSet.of(mixed)


def test_importing_the_room_is_cheap() -> None:
    code = (
        "import sys, polyalign.feedback as f; f.read, f.check, f.pair; "
        "print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
