"""Cells of a comparison on a Ray cluster, several at once, with the same figures as in turn.

Each cell is a task that holds as many cores as the comparison uses threads (and a GPU where it
trains on one), so figures do not depend on how many run beside it. A worker that dies is replaced
and its cell begun anew, or continued where it can see the comparison's folder.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from polyalign.errors import OptionError, PolyalignError, RunError
from polyalign.runs.folder import Watcher
from polyalign.studies.compare import part_of, perform
from polyalign.studies.compare_setup import Job, Setup

LOCAL = "local"
WAIT = 10.0
"""Seconds to wait for an answer at an address."""
RETRIES = 3
"""How often a cell is begun anew because its worker died."""


def on_ray(
    jobs: Sequence[Job], address: str, folder: Path, watcher: Watcher
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Cells as they are finished on a cluster; ``local`` starts one on this machine.

    Data, model and judge must be readable under the same names on every machine. Raises
    :class:`OptionError` where Ray is not installed or not to be found at the address,
    :class:`RunError` where workers keep dying.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise OptionError(
            "Ray is not installed, and --ray needs it.", "Install it: pip install polyalign[scale]"
        ) from None
    with connected(ray, address):
        threads = _threads(jobs[0].setup)
        cores = int(ray.cluster_resources().get("CPU", 0))
        if threads > cores:
            raise OptionError(
                f"A cell computes with {threads} threads, and the cluster has {cores} cores.",
                "Give fewer with --threads.",
            )
        watcher.note(f"Ray at {address}: up to {cores // threads} cells at once.")
        options = {"num_cpus": threads, "max_retries": RETRIES}
        if _on_gpu(jobs[0].setup, ray.cluster_resources()):
            options["num_gpus"] = 1
        task: Callable[..., Any] = ray.remote(_remote).options(**options).remote
        place = folder.resolve()
        everywhere = _elsewhere(jobs[0].setup).to_json()
        running = {
            task(everywhere, job.row.label, job.seed, job.key, str(place), threads): job
            for job in jobs
        }
        while running:
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                job = running.pop(reference)
                yield job, _result(ray, reference, job)


@contextlib.contextmanager
def connected(ray: Any, address: str) -> Iterator[None]:
    """Within, this process talks to a cluster; one that it was connected to before is kept."""
    if ray.is_initialized():
        yield
        return
    more: dict[str, Any] = {}
    if address != LOCAL:
        _answers(address)
    else:
        # Nothing is reported to anybody, and workers do not stand back behind other programs.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")
        more = {"include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **more)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OptionError(
            f"There is no Ray cluster at '{address}' ({told[:160]}).",
            "Start one (ray start --head) and give its HOST:PORT, or use --ray local.",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Whether anybody answers at HOST:PORT: Ray itself would try for minutes.

    Raises :class:`OptionError` where nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise OptionError(
            f"'{address}' is no address of a Ray cluster.", "Give HOST:PORT, or use --ray local."
        )
    try:
        socket.create_connection((host, int(port)), timeout=WAIT).close()
    except OSError as error:
        raise OptionError(
            f"There is no Ray cluster at '{address}' ({error.strerror or error}).",
            "Start one (ray start --head) and give its HOST:PORT, or use --ray local.",
        ) from None


def _result(ray: Any, reference: Any, job: Job) -> dict[str, Any]:
    """A finished task's cell. Raises :class:`PolyalignError` for what stopped it."""
    try:
        status, value = ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError,
            ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError) as error:  # fmt: skip
        memory = isinstance(error, ray.exceptions.OutOfMemoryError)
        why = "for want of memory" if memory else "while it computed"
        raise RunError(
            f"{job.row.label}, seed {job.seed}: its worker died {why}, {RETRIES + 1} times.",
            "What is finished is kept; the same command goes on. Look at the machine's memory, or "
            "run without --ray to see the error.",
        ) from None
    if status != "cell":
        raise PolyalignError(f"{job.row.label}: {value[0]}", value[1])
    return dict(value)


def _threads(setup: Setup) -> int:
    """Threads of a cell: those that were asked for, else those of this process."""
    import torch

    return int(setup.train.get("threads") or torch.get_num_threads())


def _on_gpu(setup: Setup, resources: Mapping[str, float]) -> bool:
    """Whether cells train on a GPU: without one of its own a task would see none."""
    device = str(setup.train.get("device") or ("cpu" if setup.world else "cuda"))
    return device.startswith("cuda") and resources.get("GPU", 0) >= 1


def _elsewhere(setup: Setup) -> Setup:
    """The setup with whole paths: a worker stands in another folder."""
    judge, colon, name = (setup.judge or "").rpartition(":")
    return replace(
        setup,
        model=_whole(setup.model),
        data=tuple(_whole(path) for path in setup.data),
        eval_data=tuple(_whole(path) for path in setup.eval_data),
        judge=f"{_whole(judge)}:{name}" if colon else setup.judge and _judge(setup.judge),
        rows=tuple(replace(row, method=_method(row.method)) for row in setup.rows),
    )


def _judge(name: str) -> str:
    return name if name == "verifier" else _whole(name)


def _method(name: str) -> str:
    file, colon, function = name.rpartition(":")
    return f"{_whole(file)}:{function}" if colon and file.endswith(".py") else name


def _whole(path: str) -> str:
    place = Path(path).expanduser()
    return str(place.resolve()) if path and place.exists() else path


def _remote(
    setup: Mapping[str, Any], label: str, seed: int, key: str, folder: str, threads: int
) -> tuple[str, Any]:
    """One cell on a worker; a user's mistake comes back as text."""
    import torch

    torch.set_num_threads(threads)
    try:
        whole = Setup.from_json(setup)
        job = Job(whole, next(row for row in whole.rows if row.label == label), seed)
        if job.key != key:
            return "fault", (
                "The worker has other code than this machine.",
                "Install the same version of polyalign on all machines.",
            )
        place = Path(folder)
        # Only a folder that this machine shares can keep what is unfinished.
        shared = (place / "cells").is_dir()
        return "cell", perform(job, None, part_of(place, job) if shared else None)
    except PolyalignError as error:
        return "fault", (error.what, error.mend)
