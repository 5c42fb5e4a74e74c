"""Which build of PyTorch `make install` takes, decided without touching the network."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from scripts import install_torch, quiet_pip
from scripts.install_torch import CPU_INDEX, Machine, decide
from scripts.quiet_pip import Progress


def machine(
    system: str = "Linux",
    gpu: str | None = None,
    cpu_index_answers: bool = True,
    installed: str | None = None,
) -> Machine:
    return Machine(system, gpu, cpu_index_answers, installed)


def test_a_working_gpu_takes_the_cuda_build() -> None:
    assert decide(machine(gpu="H200"), "2.13.0").arguments == ("torch==2.13.0",)


def test_linux_without_a_gpu_takes_the_cpu_build_from_its_own_index() -> None:
    expected = ("torch==2.13.0+cpu", "--extra-index-url", CPU_INDEX)
    assert decide(machine(), "2.13.0").arguments == expected


def test_an_index_that_does_not_answer_leaves_the_choice_to_the_configured_index() -> None:
    decision = decide(machine(cpu_index_answers=False), "2.13.0")
    assert decision.arguments == ("torch==2.13.0",)
    assert "several GB" in decision.why


def test_other_systems_take_their_one_build() -> None:
    assert decide(machine(system="Darwin"), "2.13.0").arguments == ("torch==2.13.0",)


@pytest.mark.parametrize("installed", ["2.13.0", "2.13.0+cpu", "2.13.0+cu130"])
def test_a_build_that_serves_is_left_alone(installed: str) -> None:
    assert decide(machine(installed=installed), "2.13.0").arguments == ()


def test_a_cpu_build_is_replaced_where_a_gpu_works() -> None:
    decision = decide(machine(gpu="H200", installed="2.13.0+cpu"), "2.13.0")
    assert decision.arguments == ("torch==2.13.0", "--force-reinstall")


def test_another_version_is_replaced() -> None:
    assert "torch==2.13.0+cpu" in decide(machine(installed="2.12.1+cpu"), "2.13.0").arguments


def test_the_user_can_insist_on_either_build() -> None:
    assert decide(machine(gpu="H200"), "2.13.0", "cpu").arguments[0] == "torch==2.13.0+cpu"
    assert decide(machine(), "2.13.0", "gpu").arguments == ("torch==2.13.0",)


def test_a_dry_run_prints_the_decision_and_installs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install_torch.platform, "system", lambda: "Linux")
    monkeypatch.setattr(install_torch, "working_gpu", lambda: None)
    monkeypatch.setattr(install_torch, "cpu_index_answers", lambda: True)
    monkeypatch.setattr(install_torch, "installed_torch", lambda: None)
    monkeypatch.setattr(install_torch, "pip_install", lambda *_: pytest.fail("pip ran"))
    assert install_torch.main(["--dry-run"]) == 0
    assert "would run: pip install torch==2.13.0+cpu" in capsys.readouterr().out


def test_a_driver_without_a_working_gpu_counts_as_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "nvidia-smi"
    broken.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert install_torch.working_gpu() is None


def test_an_index_that_refuses_is_not_waited_for() -> None:
    assert not install_torch.cpu_index_answers("http://127.0.0.1:9/", patience_s=2.0)


def test_the_pin_is_an_exact_public_version() -> None:
    assert install_torch.pinned_version().replace(".", "").isdigit()


def test_progress_counts_packages_and_reads_the_bar() -> None:
    progress = Progress()
    for line in (
        "Collecting torch==2.13.0\n",
        "  Downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl (190.0 MB)\n",
        "Progress 50 of 200\n",
    ):
        progress.read(line)
    assert str(progress) == "1 packages, torch-2.13.0 (190.0 MB) [#####...............]  25%"
    progress.read("Installing collected packages: a, b, c\n")
    assert str(progress) == "1 packages, installing 3 packages"


def fake_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """Put a shell script in the place of ``python -m pip``."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(quiet_pip.sys, "executable", str(python))
    monkeypatch.setattr(quiet_pip, "LOG", tmp_path / "install.log")


def test_an_installation_says_little_and_logs_everything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_pip(monkeypatch, tmp_path, "echo Collecting torch; echo 'Progress 1 of 2'")
    out = io.StringIO()
    assert quiet_pip.pip_install("PyTorch", ["torch"], out) == 0
    assert out.getvalue() == "PyTorch …\nPyTorch … done (0:00)\n"
    assert "Collecting torch" in (tmp_path / "install.log").read_text()
    assert "Progress" not in (tmp_path / "install.log").read_text().split("raw")[-1]


def test_a_failed_installation_shows_what_pip_said_and_where_the_rest_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_pip(monkeypatch, tmp_path, "echo 'ERROR: No matching distribution' >&2; exit 1")
    out = io.StringIO()
    assert quiet_pip.pip_install("PyTorch", ["torch"], out) == 1
    assert "ERROR: No matching distribution" in out.getvalue()
    assert str(tmp_path / "install.log") in out.getvalue()
