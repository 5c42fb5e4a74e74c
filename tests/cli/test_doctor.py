"""`polyalign doctor` tells the truth about machines, whole and broken."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from polyalign.cli import doctor as doctors
from polyalign.cli.doctor import Finding, diagnose, doctor

ANSWERS = doctors.answers
STATUSES = {"ok", "note", "missing", "broken"}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctors, "answers", lambda *_: False)


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(doctor)
    return app


def told(findings: list[Finding], subject: str) -> Finding:
    return next(finding for finding in findings if finding.subject == subject)


def test_this_machine_is_well_enough_to_run_the_tests() -> None:
    findings = diagnose()
    assert not [finding for finding in findings if finding.status == "broken"]
    assert {finding.status for finding in findings} <= STATUSES
    assert all(finding.mend for finding in findings if finding.status == "missing")


def test_the_json_holds_every_finding(app: typer.Typer) -> None:
    answer = CliRunner().invoke(app, ["--json"])
    assert answer.exit_code == 0
    document = json.loads(answer.stdout)
    assert document["ok"] is True
    assert {"python", "torch", "cores", "memory", "cache", "hub", "git", "wandb"} <= {
        finding["subject"] for finding in document["findings"]
    }


def test_a_missing_logger_comes_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctors, "_version", lambda _: None)
    wandb = next(finding for finding in doctors.loggers() if finding.subject == "wandb")
    assert wandb.status == "missing"
    assert wandb.mend.endswith("-m pip install wandb")


def test_a_missing_core_library_is_broken_and_the_exit_status_is_one(
    monkeypatch: pytest.MonkeyPatch, app: typer.Typer
) -> None:
    known = doctors._version
    monkeypatch.setattr(doctors, "_version", lambda name: None if name == "peft" else known(name))
    answer = CliRunner().invoke(app, [])
    assert answer.exit_code == 1
    assert "missing: peft" in answer.stdout
    assert "-m pip install peft" in answer.stdout.replace("\n", " ")
    assert "cannot work yet" in answer.stdout


def test_a_torch_that_cannot_be_imported_is_told_and_the_rest_still_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    findings = [*doctors.pytorch(), *doctors.python()]
    assert told(findings, "torch").status == "broken"
    assert told(findings, "python").status == "ok"


def test_a_gpu_that_torch_cannot_use_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctors, "_driver_gpu", lambda: "NVIDIA H200")
    device = told(list(doctors.pytorch()), "device")
    assert device.status == "note"
    assert "H200" in device.value
    assert "make install TORCH=gpu" in device.mend


def test_a_folder_that_cannot_be_written_to_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctors.tempfile, "TemporaryFile", refuse)
    finding = doctors.folder("cache", tmp_path / "not" / "there", "Set POLYALIGN_CACHE.")
    assert finding.status == "broken"
    assert "Permission denied" in finding.value
    assert finding.mend == "Set POLYALIGN_CACHE."


def test_a_nearly_full_disk_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 2**30

    monkeypatch.setattr(doctors.shutil, "disk_usage", lambda _: Usage)
    assert doctors.folder("cache", tmp_path, "").status == "note"


def test_looking_creates_no_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))
    assert told(list(doctors.folders()), "cache").status == "ok"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_a_hub_that_the_user_switched_off_is_not_asked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctors, "answers", lambda *_: pytest.fail("asked the hub"))
    monkeypatch.setenv(name, "1")
    (finding,) = doctors.hub()
    assert finding.status == "note"
    assert name in finding.value


def test_a_look_that_fails_becomes_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def memory() -> list[Finding]:
        raise RuntimeError("no such thing here")

    monkeypatch.setattr(doctors, "memory", memory)
    assert "no such thing here" in told(diagnose(), "memory").value


def test_a_container_quota_counts_as_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctors.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(doctors, "_read", lambda _: "150000 100000")
    assert doctors.usable_cores() == 2


def test_a_server_that_refuses_the_page_still_answers_and_a_closed_port_does_not() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert ANSWERS(url)
    assert not ANSWERS(url)
