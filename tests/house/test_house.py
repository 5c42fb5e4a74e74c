"""The house stands: arrows point down, files stay small, nothing unsafe is loaded."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests.house.house import (
    DEPTH,
    PACKAGE,
    REPOSITORY,
    Module,
    called,
    dotted,
    imports,
    method_ids,
    modules,
    parse,
    room_of,
)

LONGEST = 420
NAMELESS = ("engine", "loops", "objectives", "reports", "runs")
"""Rooms that never ask for a method's name."""

PURE = ("objectives", "credit", "metrics")
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def arrows_pointing_up(module: Module) -> list[str]:
    if module.room == "":  # __init__ and __main__ only name what lies in the rooms
        return []
    wrong = []
    for node, imported in imports(module):
        room = room_of(imported)
        if room and room != module.room and DEPTH[room] <= DEPTH[module.room]:
            wrong.append(f"{module.at(node)} {module.room} imports {imported}")
    return wrong


def unsafe_loading(module: Module) -> list[str]:
    wrong = []
    for node, imported in imports(module):
        if imported.split(".")[0] in PICKLES:
            wrong.append(f"{module.at(node)} imports {imported}")
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}

        def says(option: str, value: bool, given: dict = keywords) -> bool:
            return isinstance(given.get(option), ast.Constant) and given[option].value is value

        torchs = name in ("torch.load", "load") and "torch" in name + origin_of(module, name)
        if torchs and not says("weights_only", True):
            wrong.append(f"{module.at(node)} torch.load without weights_only=True")
        if says("trust_remote_code", True):
            wrong.append(f"{module.at(node)} trust_remote_code=True")
        if says("allow_pickle", True):
            wrong.append(f"{module.at(node)} allow_pickle=True")
        if name in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"):
            loaders = [dotted(value) for value in [*node.args[1:], *keywords.values()]]
            if not any(loader.endswith("SafeLoader") for loader in loaders):
                wrong.append(f"{module.at(node)} {name} without a safe loader")
    return wrong


def origin_of(module: Module, name: str) -> str:
    """Where a bare name was imported from, as far as this module's imports say."""
    return next((full for _, full in imports(module) if full.endswith(f".{name}")), "")


def method_names(module: Module, ids: frozenset[str]) -> list[str]:
    """Places where code asks for a method by name: a literal, an identifier or a comparison."""
    identifiers = {name.replace("-", "_") for name in ids}
    asked = ("method", "method_id", "method_name")
    wrong = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in ids:
            wrong.append(f"{module.at(node)} the text {node.value!r}")
        elif (name := identifier(node)) in identifiers:
            wrong.append(f"{module.at(node)} the name {name}")
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            names = {dotted(side).rsplit(".", 1)[-1] for side in sides}
            texts = [side for side in sides if isinstance(side, ast.Constant)]
            if names & set(asked) and any(isinstance(text.value, str) for text in texts):
                wrong.append(f"{module.at(node)} compares a method with a text")
        elif isinstance(node, ast.Match) and dotted(node.subject).rsplit(".", 1)[-1] in asked:
            wrong.append(f"{module.at(node)} matches on a method")
    return wrong


def identifier(node: ast.AST) -> str:
    """The name that a variable, attribute, function or class bears; empty for other nodes."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return name
    return ""


def in_house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: str, text: str) -> Module:
    """A module that a test invents, as if it lay in ``room``."""
    package = tmp_path / "src" / "polyalign"
    monkeypatch.setattr("tests.house.house.PACKAGE", package)
    monkeypatch.setattr("tests.house.house.REPOSITORY", tmp_path)
    path = package / room / "invented.py"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return parse(path)


def test_every_import_points_down_the_house() -> None:
    wrong = [arrow for module in modules() for arrow in arrows_pointing_up(module)]
    assert not wrong, "\n".join(wrong)


def test_every_module_lies_in_a_known_room() -> None:
    unknown = {module.name for module in modules() if module.room and module.room not in DEPTH}
    assert not unknown


@pytest.mark.parametrize(
    "text",
    [
        "from polyalign.runs import api",
        "import polyalign.loops.epochs",
        "from polyalign import cli",
        "from ..loops import epochs",
        "def late():\n    from polyalign.methods import catalogue",
        "import importlib\nimportlib.import_module('polyalign.cli.main')",
    ],
)
def test_an_upward_import_is_found_however_it_is_written(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert arrows_pointing_up(in_house(tmp_path, monkeypatch, "engine", text))


def test_neighbours_on_one_floor_do_not_import_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = in_house(tmp_path, monkeypatch, "credit", "from polyalign.objectives import pairwise")
    assert arrows_pointing_up(module)


def test_the_pure_rooms_import_only_arrays_types_and_errors() -> None:
    allowed = {"torch", "numpy", "polyalign", "__future__", *sys.stdlib_module_names}
    wrong = [
        f"{module.at(node)} {imported}"
        for module in modules()
        if module.room in PURE
        for node, imported in imports(module)
        if imported.split(".")[0] not in allowed
        or room_of(imported) not in ("", "types", "errors", module.room)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_file_grows_past_reading() -> None:
    lengths = {
        str(module.path.relative_to(REPOSITORY)): len(module.path.read_text().splitlines())
        for module in modules()
    }
    assert not {path: length for path, length in lengths.items() if length > LONGEST}


def test_engine_loops_objectives_reports_and_runs_never_ask_for_a_method_by_name() -> None:
    ids = method_ids()
    wrong = [
        f"{finding}"
        for module in modules()
        if module.room in NAMELESS
        for finding in method_names(module, ids)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "if method == 'whatever':\n    pass",
        "if plan.method.id in ('dpo',):\n    pass",
        "x = {'dpo': 1}",
        "def robust_dpo():\n    pass",
        "match run.method:\n    case _:\n        pass",
    ],
)
def test_asking_for_a_method_by_name_is_found(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = in_house(tmp_path, monkeypatch, "engine", text)
    assert method_names(module, frozenset({"dpo", "robust-dpo"}))


def test_nothing_is_unpickled_and_no_remote_code_is_trusted() -> None:
    wrong = [finding for module in modules() for finding in unsafe_loading(module)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from dill import loads",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "from torch import load\nload('x')",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import numpy\nnumpy.load('x', allow_pickle=True)",
    ],
)
def test_unsafe_loading_is_found(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unsafe_loading(in_house(tmp_path, monkeypatch, "engine", text))


def test_safe_loading_is_let_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "import torch, yaml, json\ntorch.load('x', weights_only=True)\n"
        "yaml.safe_load('x')\nyaml.load('x', Loader=yaml.SafeLoader)\njson.load(file)\nload('x')"
    )
    assert not unsafe_loading(in_house(tmp_path, monkeypatch, "engine", text))


def test_every_public_module_says_what_it_is() -> None:
    silent = [
        module.name
        for module in modules()
        if not module.path.stem.startswith("_") or module.path.stem == "__init__"
        if not ast.get_docstring(module.tree)
    ]
    assert not silent


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {re.split(r"[^\w-]", line)[0].lower() for lines in lists for line in lines}
    declared = {name.replace("-", "_") for name in declared} | {"yaml", "polyalign"}
    wrong = {
        f"{module.at(node)} {imported}"
        for module in modules()
        for node, imported in imports(module)
        if imported.split(".")[0] not in declared | set(sys.stdlib_module_names)
        and not (isinstance(node, ast.ImportFrom) and node.level)
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_the_public_names_are_not_names_of_rooms() -> None:
    # Importing the room polyalign.x puts the module where the public name x was.
    import polyalign

    assert not set(polyalign.__all__) & ({path.stem for path in PACKAGE.iterdir()} | set(DEPTH))


def test_a_call_is_known_by_its_last_name() -> None:
    call = ast.parse("importlib.import_module('x')", mode="eval").body
    assert isinstance(call, ast.Call)
    assert called(call) == "import_module"
