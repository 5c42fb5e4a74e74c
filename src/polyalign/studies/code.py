"""The hash of the code that a result depends on, so that a stored result can be seen to be stale.

What counts are definitions (functions, classes, constants), not files: those named, and all that
they name, across modules, comments and docstrings left out. A new function beside a used one, a
method in the same family, or how reports look make nothing stale. Found by reading the code, so
what is looked up by a text (a method by its name) has to be named by whoever asks.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import polyalign

PACKAGE = Path(polyalign.__file__).parent
SILENT = ("polyalign.cli", "polyalign.reports", "polyalign.errors")
"""Rooms that change no figure."""
FINDERS = ("polyalign.methods",)
"""Modules that find others by a text: what they find has to be named as a root."""
LOOSE = ""
"""The name under which a module's loose statements go, those that bind no name."""

Place = tuple[str, str]
"""A module (a dotted name, or a file that ends in .py) and a name in it."""


def code_hash(*roots: str, without: Iterable[str] = ()) -> str:
    """A hash of these roots and all that they name: ``module``, a file that ends in .py, or
    ``module:name``.

    ``without``: modules and packages that the result does not touch, though code names them.
    """
    digest = hashlib.sha256()
    for module, name in sorted(reached(*roots, without=without)):
        label = "own" if module.endswith(".py") else module
        digest.update(f"{label}:{name}:{_text(module, name)}\n".encode())
    return digest.hexdigest()[:16]


def reached(*roots: str, without: Iterable[str] = ()) -> set[Place]:
    """The definitions that the roots lead to."""
    silent = (*SILENT, *without)
    seen: set[Place] = set()
    waiting = [place for root in roots for place in _root(root)]
    while waiting:
        place = waiting.pop()
        module, name = place
        left_out = module in FINDERS or any(
            module == room or module.startswith(f"{room}.") for room in silent
        )
        if place in seen or left_out or name not in _module(module).definitions:
            continue
        seen.add(place)
        waiting += [(module, LOOSE), *_named(module, name)]
    return seen


def declaration(family: str, id: str) -> str:
    """The root ``module:name`` of a declared method: the function whose decorator has its id."""
    module = f"polyalign.methods.{family}"
    for name, nodes in _module(module).definitions.items():
        for node in nodes:
            for call in getattr(node, "decorator_list", ()):
                named = {k.arg: k.value for k in getattr(call, "keywords", ())}
                value = named.get("id")
                if isinstance(value, ast.Constant) and value.value == id:
                    return f"{module}:{name}"
    return module


def _root(root: str) -> list[Place]:
    module, colon, name = root.rpartition(":")
    if colon and not root.endswith(".py"):
        return [(module, name)]
    return [(root, name) for name in _module(root).definitions]


@dataclass(frozen=True)
class _Module:
    """A module's definitions by the name that they bind, and where its imports lead."""

    definitions: Mapping[str, list[ast.stmt]]
    imports: Mapping[str, Place]


@cache
def _module(module: str) -> _Module:
    path = _file(module)
    if path is None:
        return _Module({}, {})
    tree = ast.parse(path.read_text("utf-8"))
    _without_texts(tree)
    definitions: dict[str, list[ast.stmt]] = {LOOSE: []}
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)) or _types_only(node):
            continue
        for name in _bound(node):
            definitions.setdefault(name, []).append(node)
    return _Module(definitions, dict(_imports(tree)))


def _without_texts(tree: ast.Module) -> None:
    """Docstrings and texts behind constants out of the tree."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and any(_is_text(part) for part in body):
            kept = [part for part in body if not _is_text(part)]
            body[:] = kept or body[:1]


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _types_only(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def _bound(node: ast.stmt) -> list[str]:
    """The names that a statement of a module binds; loose ones bind none."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        return names or [LOOSE]
    inner = [
        name
        for part in ast.iter_child_nodes(node)
        if isinstance(part, ast.stmt)
        for name in _bound(part)
    ]
    return sorted({*inner, LOOSE}) if inner else [LOOSE]


def _imports(tree: ast.AST) -> Iterator[tuple[str, Place]]:
    """What each imported name is: a definition (module, name), or a module (module, "*")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("polyalign."):
                    yield alias.asname or alias.name, (alias.name, "*")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polyalign"):
            for alias in node.names:
                yield alias.asname or alias.name, _home(str(node.module), alias.name)


@cache
def _text(module: str, name: str) -> str:
    return "\n".join(ast.dump(node) for node in _module(module).definitions[name])


@cache
def _named(module: str, name: str) -> tuple[Place, ...]:
    """The definitions that one names."""
    own = _module(module)
    found: set[Place] = set()
    for node in own.definitions[name]:
        parts = list(_parts(node))
        inside = {id(n.value) for n in parts if isinstance(n, ast.Attribute)}
        for part in parts:
            if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                where, what = own.imports.get(part.value.id, ("", ""))
                if what == "*":
                    found.add(_home(where, part.attr))
                else:
                    found |= _place(own, module, part.value.id)
            elif isinstance(part, ast.Name) and id(part) not in inside:
                found |= _place(own, module, part.id)
    return tuple(sorted(found))


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """A definition's parts; what annotations name computes nothing."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _parts(child)


def _place(own: _Module, module: str, name: str) -> set[Place]:
    if name in own.definitions:
        return {(module, name)}
    if name not in own.imports:
        return set()
    where, what = own.imports[name]
    # A module that is handed on as a whole counts whole.
    return {(where, n) for n in _module(where).definitions} if what == "*" else {(where, what)}


def _file(name: str) -> Path | None:
    if name.endswith(".py"):
        return Path(name)
    place = PACKAGE.joinpath(*name.split(".")[1:])
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


def _home(package: str, name: str) -> Place:
    """Where a name that is imported from ``package`` is written; "*" for a module."""
    if _file(f"{package}.{name}"):
        return f"{package}.{name}", "*"
    path = _file(package)
    if path is None or path.name != "__init__.py":
        return package, name
    return dict(_offered(package)).get(name, (package, name))


@cache
def _offered(package: str) -> tuple[tuple[str, Place], ...]:
    """The names that a package passes on, each with its home."""
    return tuple(_passed_on(package))


def _passed_on(package: str) -> Iterator[tuple[str, Place]]:
    path = _file(package)
    assert path is not None
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polyalign"):
            for alias in node.names:
                yield alias.asname or alias.name, (str(node.module), alias.name)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            # Packages that load lazily keep a table from names to modules.
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if not (isinstance(key, ast.Constant) and isinstance(value, ast.Constant)):
                    continue
                home = f"{package}.{value.value!s}"
                if str(value.value).isidentifier() and _file(home):
                    yield str(key.value), (home, str(key.value))
