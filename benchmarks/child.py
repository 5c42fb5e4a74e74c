"""One side of one measurement in a process of its own, so that its peak memory is its own.

    python -m benchmarks.child '{"side": "polyalign", "work": "dpo", …}'

Prints one line of JSON: what each step took, the losses, and the peak memory.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any


class Clock:
    """Wall and CPU seconds of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.start()

    def start(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """A step is done; the next one begins."""
        finish()
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self.steps.append({"wall": wall, "cpu": cpu})
        self.start()


def finish() -> None:
    """Wait for what a GPU still computes."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def share(clock: Clock, before: dict[str, float]) -> None:
    """Share out what was done before the steps for all of them, as a reference scored ahead."""
    for step in clock.steps:
        for key in step:
            step[key] += before[key] / len(clock.steps)


def main() -> None:
    """Run the side that the argument names and print what it measured."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    torch.set_num_threads(int(spec["threads"]))
    torch.manual_seed(0)
    if spec["side"] == "polyalign":
        from benchmarks import ours as side
    else:
        from benchmarks import peer as side  # type: ignore[no-redef]
    found = getattr(side, spec["work"])(spec, Clock())
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if spec.get("device") == "cuda":
        found["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        found["device"] = torch.cuda.get_device_name()
    found["load"] = os.getloadavg()[0]
    print("\n" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
