"""Two processes train as one does, also where a step has fewer units than processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import json, sys
import torch.distributed as dist
from polyalign.engine import processes
from polyalign.loops.run import run
from polyalign.loops.session import Quiet, Session, Settings
from polyalign.methods import get
from polyalign.protocols import Sampling
from tests.engine.test_step import binary, pairs, policy
from tests.loops.test_rounds import session

if int(sys.argv[2]) > 1:
    processes.ready()
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}",
                            rank=int(sys.argv[1]), world_size=int(sys.argv[2]))
found = {}
for id, make in {"dpo": pairs, "kto": binary, "aot": pairs}.items():
    method = get(id)()
    settings = Settings(batch=4, lr=0.05, warmup=0.0, eval_every=1, epochs=2)
    found[id] = Session(
        lambda progress, method=method: method, policy(), make(5), settings, hooks=Quiet(),
        eval_records=make(2, 3)[:1] if id == "dpo" else make(2, 3))
found["grpo"] = session(Sampling(max_steps=2), batch=24)
for running in found.values():
    run(running)
if processes.rank() == 0:
    print(json.dumps({id: [
        [{k: v for k, v in row.items() if k not in ("tokens", "split")}
         for row in running.hooks.rows],
        [x.flatten().tolist() for x in running.policy.tensors().values()],
    ] for id, running in found.items()}))
if dist.is_initialized():
    dist.destroy_process_group()  # else its threads abort the interpreter as it ends, at times
"""


def trained(count: int, folder: Path) -> dict[str, list]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                SCRIPT,
                str(rank),
                str(count),
                str(folder / f"meet{count}"),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors.decode()[-2000:]
    return json.loads(outputs[0][0])


def test_a_last_step_of_one_example_is_the_same_for_two_processes(tmp_path):
    """Five examples in steps of four: the second process has none in every other step."""
    one, two = trained(1, tmp_path), trained(2, tmp_path)
    for id, (rows, tensors) in one.items():
        assert len(rows) >= 2
        for row, other in zip(rows, two[id][0], strict=True):
            assert other == pytest.approx(row, rel=1e-9, abs=1e-12), id
        for ours, theirs in zip(tensors, two[id][1], strict=True):
            torch.testing.assert_close(
                torch.tensor(theirs), torch.tensor(ours), rtol=1e-9, atol=1e-12
            )
