"""What the tests of the house share: the rooms in order, and every module of src, parsed."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "polyalign"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("studies",),
    ("api",),
    ("methods",),
    ("reports",),
    ("runs",),
    ("loops",),
    ("search",),
    ("acquisition",),
    ("evaluation",),
    ("judges", "references", "optimizers", "constraints", "environments"),
    ("policies",),
    ("engine",),
    ("objectives", "credit", "metrics"),
    ("worlds",),
    ("recipe",),
    ("feedback",),
    ("protocols",),
    ("types",),
    ("hyper",),
    ("errors",),
)
"""The rooms from the top of the house to the bottom; a room sees only the floors below its own."""

DEPTH = {room: depth for depth, floor in enumerate(FLOORS) for room in floor}


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, its room ("" for the package's own files) and its tree."""

    path: Path
    name: str
    room: str
    tree: ast.Module

    def at(self, node: ast.AST) -> str:
        return f"{self.path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 1)}"


@cache
def modules() -> tuple[Module, ...]:
    return tuple(parse(path) for path in sorted(PACKAGE.rglob("*.py")))


def parse(path: Path) -> Module:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    room = "" if len(parts) == 1 or parts[1] == "__main__" else parts[1]
    return Module(path, ".".join(parts), room, ast.parse(path.read_text(encoding="utf-8")))


def imports(module: Module) -> Iterator[tuple[ast.AST, str]]:
    """Every import of a module, inside functions too, with the full name of what is imported."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node, f"{origin(module, node)}.{alias.name}"
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node, argument.value


def origin(module: Module, node: ast.ImportFrom) -> str:
    """The absolute name of the module that ``from … import`` names."""
    if node.level == 0:
        return node.module or ""
    package = module.name.split(".")
    if module.path.name != "__init__.py":
        package = package[:-1]
    base = package[: len(package) - (node.level - 1)]
    return ".".join([*base, node.module] if node.module else base)


def called(node: ast.Call) -> str:
    """The last name of what is called: ``load`` for ``torch.load(…)``."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def dotted(node: ast.AST) -> str:
    """``torch.load`` for the expression of that name; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def room_of(imported: str) -> str:
    """The room of an imported name; empty when it is not ours or is the package itself."""
    parts = imported.split(".")
    return parts[1] if parts[0] == "polyalign" and len(parts) > 1 and parts[1] in DEPTH else ""


def method_ids() -> frozenset[str]:
    """Ids of all declared methods from the generated index; empty while there is none."""
    index = PACKAGE / "methods" / "index.json"
    if not index.exists():
        return frozenset()
    entries = json.loads(index.read_text(encoding="utf-8"))
    if isinstance(entries, dict):
        entries = entries.get("methods", entries)
    if isinstance(entries, dict):
        return frozenset(entries)
    return frozenset(entry["id"] for entry in entries)
