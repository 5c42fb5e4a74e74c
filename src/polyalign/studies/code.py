"""The hash of the code that a result depends on, so that a stored result can be seen to be stale.

What counts is what can be reached by imports from the modules named, comments and docstrings left
out: a change in another method's family, or in how reports look, makes nothing stale.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import polyalign

PACKAGE = Path(polyalign.__file__).parent
SILENT = ("cli", "reports")
"""Rooms that change no figure."""


def code_hash(*modules: str) -> str:
    """A hash of these modules (dotted names, or files that end in .py) and all they import."""
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += _imported(name)
    digest = hashlib.sha256()
    for name in sorted(seen):
        digest.update(f"{name if not name.endswith('.py') else 'own'}:{_text(name)}\n".encode())
    return digest.hexdigest()[:16]


def _file(name: str) -> Path | None:
    if name.endswith(".py"):
        return Path(name)
    place = PACKAGE.joinpath(*name.split(".")[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def _tree(name: str) -> ast.Module:
    path = _file(name)
    assert path is not None
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and len(body) > 1 and _is_text(body[0]):
            del body[0]
    return tree


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


@cache
def _text(name: str) -> str:
    return ast.dump(_tree(name))


@cache
def _imported(name: str) -> tuple[str, ...]:
    found: set[str] = set()
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {_home(node.module, alias.name) for alias in node.names}
    return tuple(
        sorted(
            n
            for n in found
            if n.startswith("polyalign.") and n.split(".")[1] not in SILENT and _file(n)
        )
    )


def _home(package: str, name: str) -> str:
    """The module in which a name that is imported from ``package`` is written."""
    if not package.startswith("polyalign"):
        return package
    if _file(f"{package}.{name}"):
        return f"{package}.{name}"
    path = _file(package)
    if path is None or path.name != "__init__.py":
        return package
    return dict(_offered(package)).get(name, package)


@cache
def _offered(package: str) -> tuple[tuple[str, str], ...]:
    """The names that a package passes on, each with its module."""
    return tuple(_passed_on(package))


def _passed_on(package: str) -> Iterator[tuple[str, str]]:
    for node in ast.walk(_tree(package)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(package):
            yield from ((alias.asname or alias.name, node.module) for alias in node.names)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            # Packages that load lazily keep a table from names to modules.
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if not (isinstance(key, ast.Constant) and isinstance(value, ast.Constant)):
                    continue
                home = f"{package}.{value.value!s}"
                if str(value.value).isidentifier() and _file(home):
                    yield str(key.value), home
