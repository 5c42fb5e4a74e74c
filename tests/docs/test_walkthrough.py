"""The walk-through shows the declarations as they stand, and says true things of them."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

from polyalign import objective
from polyalign.methods import get
from polyalign.methods.taxonomy import describe
from tests.methods.by_hand import pairs

PAGE = Path(__file__).resolve().parents[2] / "docs" / "walkthrough.md"
TEXT = PAGE.read_text("utf-8")
DIFFS = re.findall(r"^```diff\n--- (\S+)\n\+\+\+ (\S+)\n(.*?)^```", TEXT, re.S | re.M)


def declaration(id: str) -> str:
    """A method's function as it stands in the source, without decorator and docstring."""
    source = inspect.getsource(get(id).make)
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    lines = source.splitlines()
    doc = function.body[0]
    assert isinstance(doc, ast.Expr)
    assert doc.end_lineno is not None
    return "\n".join([*lines[function.lineno - 1 : doc.lineno - 1], *lines[doc.end_lineno :]])


def recipe(id: str) -> list[str]:
    """The lines of a declaration that make the method: without signature and checks."""
    source = textwrap.dedent(inspect.getsource(get(id).make))
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    lines = source.splitlines()
    made = [node for node in function.body[1:] if not isinstance(node, ast.If)]
    return [line[4:].rstrip() for node in made for line in lines[node.lineno - 1 : node.end_lineno]]


def diff(before: str, after: str) -> str:
    """What the second declaration makes, line by line against the first."""
    a, b = recipe(before), recipe(after)
    lines = list(difflib.unified_diff(a, b, n=len(a) + len(b), lineterm=""))[3:]
    return "\n".join(lines) + "\n"


def test_the_page_begins_with_the_whole_declaration_of_dpo() -> None:
    first = re.findall(r"^```python\n(.*?)^```", TEXT, re.S | re.M)[0]
    assert first.rstrip() == declaration("dpo")


def test_it_walks_to_five_other_methods() -> None:
    assert len(DIFFS) == 5
    assert len({after for _, after, _ in DIFFS}) == 5


@pytest.mark.parametrize(("before", "after", "shown"), DIFFS, ids=[f"{a}-{b}" for a, b, _ in DIFFS])
def test_every_diff_is_of_the_declarations_as_they_stand(before, after, shown) -> None:
    assert shown == diff(before, after)


def test_links_of_the_page_lead_to_the_pages_of_its_methods() -> None:
    for _, after, _ in DIFFS:
        assert f"](methods/{after}.md)" in TEXT


def test_the_example_of_the_page_gives_what_it_says() -> None:
    code = re.findall(r"^```python\n(.*?)^```", TEXT, re.S | re.M)[-1]
    (said,) = re.findall(r"^prints\n\n```\n(.*?)^```", TEXT, re.S | re.M)
    printed: list[str] = []
    exec(code, {"print": lambda *values: printed.append(" ".join(map(str, values)))})
    assert "\n".join(printed) == said.rstrip()


def test_what_the_page_says_each_step_changes_is_what_the_taxonomy_says() -> None:
    dpo = describe(get("dpo"))
    changed = {
        "r-dpo": {"margin"},
        "ipo": {"link", "objective"},
        "simpo": {"objective", "reference", "regularisation"},
        "orpo": {"objective", "reference", "regularisation"},
        "tr-dpo": {"reference"},
    }
    for id, dimensions in changed.items():
        now = describe(get(id))
        differ = {name for name in dpo if name not in ("concern",) and dpo[name] != now.get(name)}
        assert differ == dimensions, id


def test_each_limit_that_the_page_names_leads_back_to_dpo() -> None:
    a = pairs(seed=1)
    given = {k: a[k] for k in ("lp_w", "lp_l", "rf_w", "rf_l")}
    dpo = objective("dpo", beta=0.1)(given).per_unit
    np.testing.assert_allclose(objective("r-dpo", beta=0.1, alpha=0)(a).per_unit, dpo)
    np.testing.assert_allclose(objective("tr-dpo", beta=0.1)(given).per_unit, dpo)
