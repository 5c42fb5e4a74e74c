"""The arrays that a method's page names are those that its numeric entry point reads."""

from __future__ import annotations

import re

import numpy as np
import pytest

from polyalign import objective
from polyalign.methods.build_index import entry, headers
from polyalign.recipe import Declaration
from tests.methods import refusals, test_refusals_of_pairs

KNOWN = {id: d for id, d in headers().items() if isinstance(d, Declaration)}
GOOD = {**refusals.GOOD, **test_refusals_of_pairs.GOOD}
BY_CREDIT = {"grpo"}
"""Methods whose arrays may stand for others: rewards for advantages."""


def names(id: str) -> set[str]:
    rows = entry(KNOWN[id])["arrays"]
    return {name for row in rows for name in re.findall(r"\w+", row[0]) if name != "or"}


@pytest.mark.parametrize("id", sorted(set(GOOD) - BY_CREDIT))
def test_every_array_that_a_method_takes_stands_on_its_page(id: str) -> None:
    # The further references of a later stage are that stage's.
    later = {"pi0_w", "pi0_l"} if id == "spo-sequential" else set()
    assert set(GOOD[id]) - later <= names(id)


def test_what_a_page_names_is_enough_for_the_loss() -> None:
    drawn = np.random.default_rng(0)
    for id in ("dpo", "mmpo", "orpo", "triple-po", "wrpo", "bco", "osp"):
        rows = [row for row in entry(KNOWN[id])["arrays"] if row[1] == "[B]"]
        arrays = {}
        for row in rows:
            for name in (n.split(" (")[0] for n in row[0].split(", ")):
                low, high = (-9, -1) if name[:2] in ("lp", "rf") else (0, 1)
                values = drawn.uniform(low, high, 4)
                arrays[name] = np.full(4, 2) if name[0] == "n" else values
                if name == "label":
                    arrays[name] = np.array([1, 0, 1, 0])
        assert np.isfinite(objective(id)(arrays).value), id


def test_an_answer_that_is_only_imitated_has_no_reference_there() -> None:
    triple = names("triple-po")
    assert "lp_g" in triple
    assert not {"rf_g", "rf_w", "ref_w"} & triple
    rows = {row[0]: row[1] for row in entry(KNOWN["infonca"])["arrays"]}
    assert rows["lp"] == "[U, K]"
    assert rows["reward (or r)"] == "[U, K]"
    assert entry(KNOWN["sac"])["arrays"] == []
