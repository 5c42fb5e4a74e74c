"""The wheel is complete and works outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.house.house import PACKAGE, REPOSITORY


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    answer = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    run("-m", "pip", "wheel", *offline, "-w", folder, REPOSITORY, cwd=folder)
    (built,) = folder.glob("polyalign-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    target = wheel.parent / "installed"
    offline = ("--no-deps", "--no-index", "--no-compile", "--quiet", "--target", target)
    run("-m", "pip", "install", *offline, wheel, cwd=wheel.parent)
    return target


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    ours = {
        str(path.relative_to(PACKAGE.parent))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "polyalign/py.typed" in packed
    assert not ours - packed


def test_the_wheel_holds_nothing_but_the_package_and_its_licence(wheel: Path) -> None:
    tops = {name.split("/")[0].split("-")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"polyalign"}
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_installed_wheel_is_what_python_imports_elsewhere(installed: Path) -> None:
    where = "import polyalign; print(polyalign.__file__, polyalign.__version__)"
    told = run("-c", where, cwd=installed.parent, PYTHONPATH=str(installed))
    assert told.startswith(str(installed))


@pytest.mark.parametrize("argv", [("--help",), ("methods",)], ids=" ".join)
def test_the_installed_command_line_answers_outside_the_repository(
    installed: Path, argv: tuple[str, ...]
) -> None:
    told = run("-m", "polyalign", *argv, cwd=installed.parent, PYTHONPATH=str(installed))
    assert told.strip()
