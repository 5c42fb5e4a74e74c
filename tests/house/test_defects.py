"""The page of known defects is complete, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.house.house import REPOSITORY

PAGE = REPOSITORY / "docs" / "defects.md"
COUNT = 49
LATER = "not in this scope yet: "
ROW = re.compile(r"^\| T(\d+) \| (.+?) \| (.+) \|$", re.MULTILINE)
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[tuple[int, str, str]]:
    """Number, what went wrong, and what protects from it."""
    return [(int(n), what, how) for n, what, how in ROW.findall(PAGE.read_text("utf-8"))]


@cache
def names_in(path: str) -> frozenset[str]:
    """The names of a file's tests; none of a file that is not there."""
    file = REPOSITORY / path
    if not file.is_file():
        return frozenset()
    tree = ast.parse(file.read_text("utf-8"))
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def test_every_defect_has_its_row_once_and_in_order():
    assert [number for number, _, _ in rows()] == list(range(1, COUNT + 1))


@pytest.mark.parametrize(("number", "what", "how"), rows(), ids=lambda x: f"T{x}"[:3])
def test_every_defect_names_tests_that_exist_or_says_why_not_yet(number, what, how):
    assert what.endswith(".")
    if how.startswith(LATER):
        assert len(how) > len(LATER) + 10
        return
    parts = how.split("<br>")
    named = [NAMED.fullmatch(part) for part in parts]
    assert all(named), f"T{number}: not a test: {parts}"
    missing = [m[0] for m in named if m and m[2] not in names_in(m[1])]
    assert not missing, f"T{number}: no such test: {missing}"


def test_a_test_that_is_not_there_is_found():
    assert "test_a_test_that_is_not_there_is_found" in names_in("tests/house/test_defects.py")
    assert "test_nothing" not in names_in("tests/house/test_defects.py")
    assert not names_in("tests/house/test_no_such_file.py")
