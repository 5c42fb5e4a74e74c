"""The page of known optima holds a row for each experiment of the laboratory."""

from __future__ import annotations

from polyalign.studies.experiments import experiments
from scripts.build_optima import HEAD, PAGE


def rows() -> dict[str, list[str]]:
    """The page's cells by the row's name."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells[2:]}


def test_each_experiment_has_its_row_with_the_words_and_the_bound_of_the_tables() -> None:
    found, known = rows(), experiments()
    assert list(found) == list(known), "write it with: python scripts/build_optima.py"
    for name, (_, one) in known.items():
        world, _, finds, _, within, _ = found[name]
        assert (world, finds, within) == (one.world, one.finds, f"{one.tolerance:g}"), name


def test_every_row_on_the_page_is_within_its_bound() -> None:
    for name, (_, _, _, distance, within, _) in rows().items():
        assert float(distance.removeprefix("< ")) <= max(float(within), 1e-8), name


def test_the_page_says_how_it_was_made() -> None:
    text = PAGE.read_text("utf-8")
    assert text.startswith(HEAD)
    assert "Not tried" not in text
