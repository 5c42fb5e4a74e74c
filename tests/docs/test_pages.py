"""The generated pages say what the declarations say."""

from __future__ import annotations

import re
from pathlib import Path

from polyalign.methods import catalogue
from scripts.build_docs import METHODS, generated

DOCS = METHODS.parent


def test_the_pages_of_the_methods_are_current() -> None:
    pages = generated(catalogue())
    old = [
        path.name
        for path, text in pages.items()
        if not path.is_file() or path.read_text("utf-8") != text
    ]
    assert not old, f"write them with `make docs`: {old}"
    assert {path.name for path in METHODS.glob("*.md")} == {path.name for path in pages}


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in [DOCS.parent / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text("utf-8")):
            if not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_commands_in_the_documents_exist() -> None:
    from typer.main import get_command

    from polyalign.cli.main import app

    root = get_command(app)
    unknown = []
    for page in [DOCS.parent / "README.md", *DOCS.glob("*.md")]:
        if page.name == "mistakes.md":
            continue
        pattern = r"polyalign ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?"
        for first, second in re.findall(pattern, _code(page)):
            command = root.commands.get(first)
            below = getattr(command, "commands", None)
            if command is None or (below and second and second not in below):
                unknown.append(f"{page.name}: polyalign {first} {second}")
    assert not unknown


def _code(page: Path) -> str:
    """What stands in code of a page: indented lines, fences and spans."""
    text = page.read_text("utf-8")
    fenced = re.findall(r"```.*?\n(.*?)```", text, re.S)
    rest = re.sub(r"```.*?```", "", text, flags=re.S)
    indented = re.findall(r"^    .*", rest, re.M)
    return "\n".join([*fenced, *indented, *re.findall(r"`([^`]+)`", rest)])
