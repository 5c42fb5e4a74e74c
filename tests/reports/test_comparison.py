import json

import numpy as np
import pytest
from rich.console import Console

from polyalign.errors import OptionError
from polyalign.metrics.comparison import holm, paired_difference
from polyalign.reports.comparison import Column, Entry, Values, compare

draw = np.random.default_rng(0)
BASE = draw.integers(0, 2, 80).astype(float)
BETTER = np.maximum(BASE, (draw.random(80) < 0.5).astype(float))
SHUFFLED = np.roll(BASE, 1)
COLUMNS = [
    Column("new", "new instructions"),
    Column("ppl", "perplexity", "low", "number"),
    Column("length", "length", None, "number"),
    Column("time", "time", None, "seconds", test=False),
]


def table():
    nats = np.full(40, 50.0)
    return compare(
        "T",
        COLUMNS,
        [
            Entry("base", {"new": Values(BASE), "ppl": Values(nats, steps=[20.0] * 40)}),
            Entry(
                "good",
                {
                    "new": Values(BETTER),
                    "ppl": Values(nats + draw.random(40), steps=[20.0] * 40),
                    "length": {"value": 31.0, "low": 30.0, "high": 32.0, "n": 9},
                    "time": 75.0,
                },
            ),
            Entry("shuffled", {"new": Values(SHUFFLED), "ppl": None, "length": 30.0}),
        ],
        base="base",
    )


def cells(row):
    return {column.name: cell for column, cell in zip(COLUMNS, table().rows[row][2])}


def test_tests_are_paired_and_corrected_over_the_whole_table():
    found = table().to_json()["rows"]
    p = [
        paired_difference(BETTER, BASE).p,
        found[1]["cells"]["ppl"]["difference"]["p"],
        paired_difference(SHUFFLED, BASE).p,
    ]
    told = [
        found[1]["cells"]["new"]["p_holm"],
        found[1]["cells"]["ppl"]["p_holm"],
        found[2]["cells"]["new"]["p_holm"],
    ]
    assert told == pytest.approx(holm(p))


def test_verdicts_follow_what_is_better():
    assert cells(1)["new"].verdict == "better"
    assert cells(1)["ppl"].verdict == "worse"
    assert cells(2)["new"].verdict == ""


def test_what_has_no_better_is_shown_and_not_tested():
    assert cells(1)["length"].text == "31 [30, 32]"
    assert cells(1)["length"].p is None
    assert cells(1)["time"].text == "1 min 15 s"
    assert cells(2)["ppl"].text == "–"


def test_the_base_is_not_tested_against_itself():
    assert all(cell.p is None for cell in table().rows[0][2])


def test_perplexity_is_the_exponential_of_nats_a_step():
    assert cells(0)["ppl"].value == pytest.approx(np.exp(2.5))


def test_it_is_plain_data_and_prints():
    json.dumps(table().to_json(), allow_nan=False)
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table().rich())
    text = console.export_text()
    assert "31 [30, 32]" in text
    assert "Holm's correction" in text


@pytest.mark.parametrize(
    ("entries", "base", "says"),
    [
        ([Entry("base", {})], "bas", "no row 'bas'. Did you mean base"),
        ([Entry("base", {"nw": 1.0})], "base", "column 'nw'. Did you mean new"),
        (
            [Entry("base", {"new": Values([0.0])}), Entry("x", {"new": Values([0.0, 1.0])})],
            "base",
            "'x' has 2 values of new, 'base' has 1",
        ),
    ],
)
def test_what_does_not_match_is_told(entries, base, says):
    with pytest.raises(OptionError, match=says):
        compare("T", COLUMNS, entries, base)
