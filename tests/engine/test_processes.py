"""Two processes compute the loss and gradient of one: the normaliser is global."""

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
import torch
import torch.distributed as dist
from polyalign.engine import processes
from polyalign.engine.scoring import Cast
from polyalign.engine.step import Engine
from polyalign.feedback.units import assemble, make_units
from polyalign.recipe import Update
from tests.engine.test_step import OBJECTIVES, policy

if int(sys.argv[2]) > 1:
    processes.ready()
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}",
                            rank=int(sys.argv[1]), world_size=int(sys.argv[2]))
found = {}
for name, (objective, make) in OBJECTIVES.items():
    records = make(7)
    model = policy()
    engine = Engine(Cast(model, {"ref": policy(1).freeze()}, {}), 20)
    share = processes.mine(list(range(7)))
    batch = assemble(make_units(records, share, objective.needs, 0, 0), model.encode)
    state = objective.start() if hasattr(objective, "start") else {}
    report, _ = engine.backward(Update(objective), batch, state)
    processes.add_gradients(model.trainable().values())
    gradient = next(iter(model.trainable().values())).grad
    found[name] = [report.loss, report.tokens, report.metrics, gradient.flatten().tolist()]
# What one process makes for all may itself be shared out: nothing is asked of the others.
made = processes.first(lambda: processes.first(lambda: [processes.count()]))
assert made == [1] and processes.count() == int(sys.argv[2])
if processes.rank() == 0:
    print(json.dumps(found))
if dist.is_initialized():
    dist.destroy_process_group()  # else its threads abort the interpreter as it ends, at times
"""


def measured(count: int, folder: Path) -> dict[str, list]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(count), str(folder / f"meet{count}")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(count)
    ]
    outputs = [process.communicate(timeout=300) for process in running]
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors.decode()
    return json.loads(outputs[0][0])


def test_two_processes_give_the_loss_gradient_and_metrics_of_one(tmp_path):
    one, two = measured(1, tmp_path), measured(2, tmp_path)
    assert set(one) == set(two)
    for name in one:
        assert two[name][0] == pytest.approx(one[name][0], rel=1e-12), name
        torch.testing.assert_close(
            torch.tensor(two[name][3]), torch.tensor(one[name][3]), rtol=1e-9, atol=1e-12
        )
        assert two[name][2] == pytest.approx(one[name][2], rel=1e-9, abs=1e-12), name
