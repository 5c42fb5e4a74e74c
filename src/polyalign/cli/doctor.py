"""`polyalign doctor`: what this machine can do, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

Status = Literal["ok", "note", "missing", "broken"]

LOGGERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""Optional packages; each attaches to a run as a logger."""

GIB = 2**30
SMALL_DISK_GIB = 5
SMALL_MEMORY_GIB = 4
PATIENCE_S = 4.0


@dataclass(frozen=True)
class Finding:
    """One fact about the machine: ``value`` is what was found, ``mend`` what to do about it.

    ``status``: ok; note (works, but you may want to know); missing (optional); broken (polyalign
    cannot work before it is mended).
    """

    subject: str
    status: Status
    value: str
    mend: str = ""


def diagnose() -> list[Finding]:
    """Look at the machine; a look that fails is itself a finding, never an exception."""
    findings: list[Finding] = []
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (
        python,
        pytorch,
        libraries,
        processors,
        memory,
        folders,
        models,
        hub,
        git,
        loggers,
    )
    for look in looks:
        try:
            findings.extend(look())
        except Exception as error:  # whatever is wrong with a machine, the others are still told
            what = f"could not be looked at ({type(error).__name__}: {error})"
            findings.append(Finding(look.__name__, "note", what))
    return findings


def python() -> Iterator[Finding]:
    """The interpreter and the operating system."""
    version = platform.python_version()
    system = f"{platform.system()} {platform.machine()}"
    yield Finding("python", "ok", f"{version} on {system}, {_here(Path(sys.executable))}")


def pytorch() -> Iterator[Finding]:
    """PyTorch's build and the devices it can use."""
    try:
        import torch
    except Exception as error:
        what = f"cannot be imported ({type(error).__name__}: {_first_line(error)})"
        yield Finding("torch", "broken", what, _pip("torch"))
        return
    cuda = torch.version.cuda
    build = f"CUDA {cuda}" if cuda else "CPU build"
    yield Finding("torch", "ok", f"{torch.__version__} ({build})")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
            size = device.total_memory / GIB
            yield Finding(f"cuda:{index}", "ok", f"{device.name}, {size:.0f} GiB, {bf16}")
    elif torch.backends.mps.is_available():
        yield Finding("device", "ok", "mps (Apple GPU)")
    elif gpu := _driver_gpu():
        if cuda:
            mend = f"Update the NVIDIA driver to one that serves CUDA {cuda}."
        else:
            mend = "make install TORCH=gpu (after removing .venv/.torch)"
        yield Finding("device", "note", f"cpu only, although there is a {gpu}", mend)
    else:
        level = torch.backends.cpu.get_cpu_capability()
        yield Finding("device", "ok", f"cpu ({level}); no GPU here")
    threads, cores = torch.get_num_threads(), usable_cores()
    if threads < cores:
        named = "OMP_NUM_THREADS" if os.environ.get("OMP_NUM_THREADS") else "the environment"
        mend = "unset OMP_NUM_THREADS" if named == "OMP_NUM_THREADS" else ""
        yield Finding("threads", "note", f"{threads} of {cores} cores, set by {named}", mend)
    else:
        yield Finding("threads", "ok", f"{threads}")


def libraries() -> Iterator[Finding]:
    """The packages that polyalign cannot do without."""
    found = {name: _version(name) for name in required()}
    absent = [name for name, version in found.items() if version is None]
    if absent:
        yield Finding("libraries", "broken", f"missing: {', '.join(absent)}", _pip(*absent))
    main = ("transformers", "peft", "datasets", "accelerate")
    yield Finding("libraries", "ok", ", ".join(f"{n} {found[n]}" for n in main if found.get(n)))
    if found.get("transformers"):
        try:
            importlib.import_module("transformers")
        except Exception as error:
            what = f"cannot be imported ({type(error).__name__}: {_first_line(error)})"
            yield Finding("transformers", "broken", what, _pip("--force-reinstall", "transformers"))


def required() -> list[str]:
    """Names of the packages that polyalign declares it cannot do without."""
    declared = importlib.metadata.requires("polyalign") or []
    return [re.split(r"[^\w.-]", line)[0] for line in declared if "extra ==" not in line]


def processors() -> Iterator[Finding]:
    """Cores that this process may use."""
    usable, all_of_them = usable_cores(), os.cpu_count() or 1
    of = f" of the machine's {all_of_them}" if usable < all_of_them else ""
    yield Finding("cores", "ok", f"{usable}{of}")


def usable_cores() -> int:
    """Cores that this process may use, by affinity and by a container's quota."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        cores = min(cores, max(1, -(-int(quota[0]) // int(quota[1]))))
    return cores


def memory() -> Iterator[Finding]:
    """Main memory, within a container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit():
        total = min(total, int(limit))
    size = total / GIB
    if size < SMALL_MEMORY_GIB:
        mend = "Models up to about 200 M parameters fit; use LoRA and short lengths."
        yield Finding("memory", "note", f"{size:.1f} GiB", mend)
    else:
        yield Finding("memory", "ok", f"{size:.1f} GiB")


def folders() -> Iterator[Finding]:
    """The cache folder and the current one: writable, and with room."""
    from polyalign.policies.language.folders import cache_folder

    mend = "Give yourself permission there, or set POLYALIGN_CACHE to another folder."
    yield folder("cache", cache_folder(), mend)
    yield folder("this folder", Path.cwd(), "Run from a folder you may write to, or give --output.")


def folder(subject: str, path: Path, mend: str) -> Finding:
    """Whether ``path``, or its nearest parent that exists, can be written to; its free space."""
    existing = next(parent for parent in (path, *path.parents) if parent.is_dir())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        what = f"{_here(path)} cannot be written to ({error.strerror})"
        return Finding(subject, "broken", what, mend)
    free = shutil.disk_usage(existing).free / GIB
    value = f"{_here(path)}, {free:.0f} GiB free"
    if free < SMALL_DISK_GIB:
        return Finding(subject, "note", value, "A full run writes several times the model's size.")
    return Finding(subject, "ok", value)


def models() -> Iterator[Finding]:
    """Models already in the user's cache."""
    from polyalign.policies.language.folders import list_models

    names = [model.name for model in list_models()]
    if names:
        yield Finding("models", "ok", ", ".join(names))
    else:
        yield Finding("models", "missing", "none in the cache yet", "polyalign model get smollm2")


def hub() -> Iterator[Finding]:
    """Whether the model hub answers; polyalign works without it."""
    without = "Folders work without it, and `polyalign model get smollm2` finds another way."
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").strip().lower() in {"1", "true", "yes", "on"}:
            yield Finding("hub", "note", f"switched off by {name}", f"unset {name}")
            return
    if answers(os.environ.get("HF_ENDPOINT") or "https://huggingface.co"):
        yield Finding("hub", "ok", "answers")
    else:
        yield Finding("hub", "note", "does not answer", without)


def answers(url: str, patience_s: float = PATIENCE_S) -> bool:
    """Whether an HTTP server answers at ``url`` in time, whatever it says."""
    answered: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=patience_s).close()
            answered.append(True)
        except urllib.error.HTTPError:
            answered.append(True)
        except (OSError, ValueError):
            pass

    # In a thread, because looking a name up has no time limit of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience_s)
    return bool(answered)


def git() -> Iterator[Finding]:
    """Git, which `make` and the development of methods use; runs do without."""
    try:
        told = subprocess.run(["git", "--version"], capture_output=True, text=True, timeout=10)
        yield Finding("git", "ok", told.stdout.strip().removeprefix("git version "))
    except OSError:
        yield Finding("git", "missing", "not installed", "Install git from your system's packages.")


def loggers() -> Iterator[Finding]:
    """Optional loggers; every run writes metrics.jsonl without them."""
    for name in LOGGERS:
        version = _version(name)
        if version is None:
            yield Finding(name, "missing", "optional logger, not installed", _pip(name))
        else:
            yield Finding(name, "ok", version)


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what this machine can do, what is missing, and the command that installs it.

    The exit status is 1 when something that polyalign needs is broken.

    Example: polyalign doctor --json
    """
    findings = diagnose()
    broken = sum(finding.status == "broken" for finding in findings)
    if json:
        import json as encoder

        told = {"ok": not broken, "findings": [asdict(finding) for finding in findings]}
        typer.echo(encoder.dumps(told, indent=2))
    else:
        show(findings)
    if broken:
        raise typer.Exit(1)


MARKS = {
    "ok": ("✓", "green"),
    "note": ("!", "yellow"),
    "missing": ("-", "dim"),
    "broken": ("✗", "bold red"),
}


def show(findings: list[Finding]) -> None:
    """Print the findings as a table, and the whole in one sentence."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1))
    for finding in findings:
        mark, style = MARKS[finding.status]
        said = Text(finding.value)
        if finding.mend:
            said.append(f"\n→ {finding.mend}", style="cyan")
        table.add_row(Text(mark, style=style), Text(finding.subject, style="bold"), said)
    console = Console()
    console.print(table)
    broken = [finding.subject for finding in findings if finding.status == "broken"]
    if broken:
        console.print(f"\n[bold red]polyalign cannot work yet:[/] mend {', '.join(broken)}.")
    else:
        console.print("\n[green]Everything that polyalign needs works here.[/]")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pip(*packages: str) -> str:
    return f"{_here(Path(sys.executable))} -m pip install {' '.join(packages)}"


def _here(path: Path) -> str:
    """``path`` as a person in this folder would type it."""
    if path.is_relative_to(Path.cwd()) and path != Path.cwd():
        return str(path.relative_to(Path.cwd()))
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def _driver_gpu() -> str | None:
    """Name of the first GPU that the NVIDIA driver reports, or None."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=30)
    names = told.stdout.strip().splitlines()
    return names[0].strip() if told.returncode == 0 and names else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
