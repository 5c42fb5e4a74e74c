"""Install the build of PyTorch that this machine can use: CUDA where a GPU works, else CPU.

On Linux the package index serves the CUDA build (several GB) to everybody; the CPU build lies
on PyTorch's own index. So a machine without a GPU takes the CPU build from there when that
index answers quickly, and otherwise whatever the configured index has. Other systems have
one build. Standard library only: it runs before anything is installed.

    python scripts/install_torch.py [--build auto|cpu|gpu] [--dry-run]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from quiet_pip import pip_install

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PATIENCE_S = 5.0


@dataclass(frozen=True)
class Machine:
    """What the decision depends on; ``installed`` is the version of PyTorch already there."""

    system: str
    gpu: str | None
    cpu_index_answers: bool
    installed: str | None


@dataclass(frozen=True)
class Decision:
    """The arguments for ``pip install`` (none: nothing to do) and the reason in plain words."""

    arguments: tuple[str, ...]
    why: str


def decide(machine: Machine, version: str, build: str = "auto") -> Decision:
    """What to install on ``machine`` so that PyTorch ``version`` works; ``build`` overrides."""
    plain = f"torch=={version}"
    wants_gpu = build == "gpu" or (build == "auto" and machine.gpu is not None)
    if machine.installed is not None:
        installed, _, local = machine.installed.partition("+")
        if installed == version and (local == "cpu") <= (not wants_gpu):
            return Decision((), f"PyTorch {machine.installed} is already there")
    # pip takes an installed CPU build for the version asked for; only force replaces it.
    replace = ("--force-reinstall",) if machine.installed is not None else ()
    if machine.system != "Linux":
        return Decision((plain, *replace), f"the one build for {machine.system}")
    if wants_gpu:
        found = f"found {machine.gpu}" if machine.gpu else "asked for"
        return Decision((plain, *replace), f"the CUDA build, several GB: {found}")
    if machine.cpu_index_answers:
        return Decision(
            (f"{plain}+cpu", "--extra-index-url", CPU_INDEX, *replace),
            "the CPU build, about 200 MB: no working NVIDIA GPU here"
            if build == "auto"
            else "the CPU build, about 200 MB: asked for",
        )
    return Decision(
        (plain, *replace),
        "the build that pip's configured index has (PyTorch's CPU index does not answer; "
        "it may be the CUDA build, several GB, which works without a GPU too)",
    )


def working_gpu() -> str | None:
    """Name of the first NVIDIA GPU that the driver reports, or None."""
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = answer.stdout.strip().splitlines()
    return names[0].strip() if answer.returncode == 0 and names else None


def cpu_index_answers(url: str = f"{CPU_INDEX}/torch/", patience_s: float = PATIENCE_S) -> bool:
    """Whether PyTorch's CPU index answers within ``patience_s`` seconds."""
    answers: list[int] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=patience_s) as answer:
                answers.append(answer.status)
        except OSError:
            pass

    # In a thread, because looking a name up has no time limit of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience_s)
    return answers == [200]


def installed_torch() -> str | None:
    """The version of PyTorch in this environment, or None."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def pinned_version(constraints: Path = CONSTRAINTS) -> str:
    """The version of PyTorch that constraints.txt pins."""
    found = re.search(r"^torch==(\S+)$", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{constraints} does not pin torch.")
    return found[1]


def look(build: str) -> Machine:
    """Find out about this machine, asking only what the decision needs."""
    system = platform.system()
    gpu = working_gpu() if build != "cpu" else None
    ask_index = system == "Linux" and gpu is None and build != "gpu"
    installed = installed_torch()
    return Machine(system, gpu, ask_index and installed is None and cpu_index_answers(), installed)


def main(argv: list[str] | None = None) -> int:
    """Decide, install, and say in one line whether the GPU can be used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--dry-run", action="store_true", help="print the decision and stop")
    options = parser.parse_args(argv)
    machine = look(options.build)
    decision = decide(machine, pinned_version(), options.build)
    print(f"PyTorch: {decision.why}", flush=True)
    if options.dry_run:
        print("would run: " + ("pip install " + " ".join(decision.arguments)).strip())
        return 0
    if not decision.arguments:
        return 0
    status = pip_install("PyTorch", [*decision.arguments, "-c", str(CONSTRAINTS)])
    if status == 0 and machine.gpu and not gpu_usable():
        print(
            f"Note: {machine.gpu} is there, but this PyTorch cannot use it (an older driver, or "
            "a CPU build on the configured index); polyalign will run on the CPU. "
            "`polyalign doctor` says more."
        )
    return status


def gpu_usable() -> bool:
    """Whether the PyTorch just installed sees a GPU (asked in a process of its own)."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
