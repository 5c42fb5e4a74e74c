"""What people type before anything trains answers at once: nothing heavy is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate", "plotly", "pandas")
RUN = """
import json, sys
sys.argv = {argv!r}
status = 0
try:
    {statement}
except SystemExit as end:
    status = end.code or 0
loaded = sorted(set({heavy!r}) & set(sys.modules))
print("\\n" + json.dumps([status, loaded]))
"""


def heavy_modules(statement: str, *argv: str, **environment: str) -> list[str]:
    """What of :data:`HEAVY` a fresh interpreter has loaded after ``statement``."""
    code = RUN.format(argv=["polyalign", *argv], statement=statement, heavy=HEAVY)
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    status, loaded = json.loads(answer.stdout.splitlines()[-1])
    assert status == 0, answer.stdout + answer.stderr
    return loaded


def test_the_measure_itself_sees_a_heavy_module() -> None:
    assert heavy_modules("import torch") == ["torch"]


def test_importing_polyalign_loads_nothing_heavy() -> None:
    assert heavy_modules("import polyalign; dir(polyalign); polyalign.PolyalignError") == []


@pytest.mark.parametrize(
    "argv",
    [("--help",), ("--version",), ("train", "--help"), ("data", "--help"), ("methods",)],
    ids=" ".join,
)
def test_looking_around_loads_nothing_heavy(argv: tuple[str, ...]) -> None:
    assert heavy_modules("from polyalign.cli.main import main; main()", *argv) == []


def test_completion_loads_nothing_heavy() -> None:
    loaded = heavy_modules(
        "from polyalign.cli.main import main; main()",
        _POLYALIGN_COMPLETE="complete_bash",
        COMP_WORDS="polyalign tr",
        COMP_CWORD="1",
    )
    assert loaded == []
