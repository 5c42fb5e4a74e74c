"""What each shape of row is taken for, and the record it makes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign.errors import DataError
from polyalign.feedback import (
    Demonstration,
    Pair,
    Prompt,
    read,
    to_trl,
)
from polyalign.feedback.payloads import split_common_text
from polyalign.feedback.store import dump, load
from polyalign.feedback.units import slots
from tests.feedback.shapes import SHAPES, A, Q


@pytest.mark.parametrize(("row", "words", "kind", "parts"), SHAPES, ids=[s[1] for s in SHAPES])
def test_a_row_is_recognised_and_read(
    row: dict[str, Any], words: str, kind: type[Any], parts: dict[str, Any]
) -> None:
    feedback = read([row])
    assert feedback.format == words
    assert feedback.kind is kind
    assert feedback.rejects == []
    for name, value in parts.items():
        assert getattr(feedback[0], name) == value, name


def test_extra_numbers_are_fields_and_other_columns_meta() -> None:
    row = {
        "prompt": "p",
        "chosen": "a",
        "rejected": "b",
        "margin": 2,
        "weight": 0.5,
        "source": "x",
        "checked": True,
    }
    record = read([row])[0]
    assert record.weight == 0.5
    assert record.fields == {"margin": 2.0}
    assert record.meta == {"source": "x", "checked": True}


def test_columns_can_be_mapped_and_a_wrong_name_is_named() -> None:
    row = {"question": "p", "good": "a", "bad": "b"}
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    record = read([row], columns=names)[0]
    assert (record.prompt, record.chosen, record.rejected) == ("p", "a", "b")
    with pytest.raises(DataError, match="no column 'qestion'.*Did you mean question"):
        read([row], columns={**names, "prompt": "qestion"})


def test_a_kind_can_be_asked_for_and_an_impossible_one_is_an_error() -> None:
    rows = [{"prompt": "p", "completion": "a", "label": True}]
    assert read(rows, kind="demonstrations").kind is Demonstration
    assert read(rows, kind=Prompt)[0].prompt == "p"
    with pytest.raises(DataError, match="read as pairs"):
        read(rows, kind="pairs")
    with pytest.raises(DataError, match="Did you mean pairs"):
        read(rows, kind="pears")


def test_images_are_refused_with_one_sentence() -> None:
    part = {"type": "image", "image": "x.png"}
    for row in (
        {"prompt": "p", "completion": "c", "images": ["x.png"]},
        {"messages": [{"role": "user", "content": [part]}, A]},
    ):
        with pytest.raises(DataError, match="holds images, which polyalign does not train on"):
            read([row])


def test_content_in_text_parts_is_joined() -> None:
    content = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    record = read([{"prompt": [{"role": "user", "content": content}], "completion": [A]}])[0]
    assert record.prompt == (Q,)


@given(st.text("ab \n", max_size=12), st.text("ab \n", max_size=12))
def test_an_implicit_prompt_is_a_shared_beginning_and_leaves_something_to_answer(
    chosen: str, rejected: str
) -> None:
    prompt, ours, theirs = split_common_text(chosen, rejected)
    assert (prompt + ours, prompt + theirs) == (chosen, rejected)
    if prompt:
        assert ours
        assert theirs
        assert not prompt[-1].isspace()


def test_a_pairs_further_answers_are_written_and_read_back() -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "gold": "g", "source_chosen": "s"}
    (record,) = read([row])
    assert load(dump(record)) == record
    (again,) = read(list(to_trl([record])))
    assert again == record
    assert slots(record)["target"] == ("p", "g")
    assert slots(read([{k: row[k] for k in ("prompt", "chosen", "rejected")}])[0])["target"] == (
        "p",
        "a",
    )


def test_a_note_that_bears_the_name_of_an_answer_stays_a_note() -> None:
    record = Pair(key="k", prompt="p", chosen="a", rejected="b", meta={"gold": "an answer"})
    (again,) = read(list(to_trl([record])))
    assert again.others == {}
    assert again.meta == {"gold": "an answer"}


def test_a_further_answer_that_is_no_answer_is_a_bad_row() -> None:
    good = {"prompt": "p", "chosen": "a", "rejected": "b", "gold": "g"}
    feedback = read([good, good, {**good, "gold": 3}])
    assert feedback.rejects[0].field == "gold"
