# ruff: noqa: E501  (a case is one line, however long)
"""Mistakes that cards say to refuse or to warn of: how one is made and told, and good arrays."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from polyalign import objective
from polyalign.errors import DataError, PolyalignError, PolyalignWarning
from polyalign.feedback import read
from polyalign.feedback.records import Record
from polyalign.loops.run import run as run_session
from polyalign.loops.session import Quiet, Session, Settings
from polyalign.methods import get
from polyalign.policies.tabular import TabularPolicy
from polyalign.worlds.bandit import Bandit
from tests.methods.by_hand import pairs

NAN, INF = float("nan"), float("inf")
SIZE = 5
DRAW = np.random.default_rng(2)


def lps(*names: str) -> dict[str, Any]:
    return {name: -DRAW.uniform(1, 9, SIZE) for name in names}


SUMS = pairs(seed=6, size=SIZE)
PLAIN = {k: SUMS[k] for k in ("lp_w", "lp_l", "rf_w", "rf_l")}
FREE = {k: SUMS[k] for k in ("lp_w", "lp_l", "n_w", "n_l")}
STEPS = -DRAW.uniform(0.1, 2, (6, 2, 4))
MASK = np.ones((2, 4))
LABEL = [1, 0, 1, 0, 1]

LISTS = {
    "lp": [[-1.0, -2.0, -4.0], [-3.0, -1.0, NAN]],
    "rf": [[-2.0, -2.0, -2.0], [-1.0, -2.0, NAN]],
    "r": [[1.0, 0.5, 0.0], [0.2, 0.9, NAN]],
}
ALONE = {name: [[values[0][0], NAN]] for name, values in LISTS.items()}
COUNTED = {"lp": LISTS["lp"], "n": [[1, 2, 3], [2, 2, 0]], "r": LISTS["r"]}
RATIO_LISTS, COUNTED_LISTS = ("infonca", "nca", "exo", "lipo", "brain"), ("pro", "rrhf")

STEP_PAIRS = {"logp_w": STEPS[0], "ref_w": STEPS[1], "logp_l": STEPS[2], "ref_l": STEPS[3]}
TOKENS = {f"{name}_{side}": np.eye(2, 4) for name in ("tokens", "stop_word") for side in "wl"}
DRAWN = {"u_w": -STEPS[4] / 3, "u_l": -STEPS[5] / 3}
EMBEDDED = {name: np.eye(2, 3) + i for i, name in enumerate(("e_x", "e_w", "e_l"))}

GOOD: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("h-dpo", "robust-dpo", "reward-augmented"), PLAIN),
    "mmpo": PLAIN | {"s_w": np.ones(SIZE), "s_l": np.zeros(SIZE)},
    "osp": PLAIN | {"p": np.full(SIZE, 0.7)},
    "bvpo": PLAIN | {"trace": LABEL},
    "wpo": STEP_PAIRS | {"log_collision_w": STEPS[4], "log_collision_l": STEPS[5]},
    "sampo": STEP_PAIRS | DRAWN,
    "bmc": STEP_PAIRS | TOKENS,
    "dpo-kernels": STEP_PAIRS | {"kl_w": -STEPS[4], "kl_l": -STEPS[5]} | EMBEDDED,
    "implicit-reward-sft": lps("lp", "rf"),
    "offline-rlhf": {"logp": STEPS[0], "mask": MASK},
    **dict.fromkeys(("apo-zero", "apo-down", "cal-dpo"), PLAIN),
    "asft": FREE,
    "bco": lps("lp", "rf") | {"label": LABEL},
    "dro": lps("lp", "rf") | {"r": LABEL, "value": np.zeros(SIZE)},
    **dict.fromkeys(RATIO_LISTS, LISTS),
    **dict.fromkeys(COUNTED_LISTS, COUNTED),
    "dpo": PLAIN,
    "ipo": SUMS,
    "slic": {k: SUMS[k] for k in ("lp_w", "lp_l")} | {"lp_t": SUMS["lp_w"]},
    "simpo": FREE,
    "orpo": FREE,
    "aot": PLAIN,
    "tdpo": PLAIN | {"D_w": np.ones(SIZE), "D_l": np.ones(SIZE)},
    "kto": lps("lp", "rf", "lpK", "rfK") | {"label": LABEL},
    "iopo": lps(*(f"{a}_{i}{j}" for a in ("lp", "rf") for i in (1, 2) for j in (1, 2))),
    "sft": {"logp": STEPS[0], "mask": MASK},
    "oreo": {"logp": STEPS[0], "ref": STEPS[1], "value": STEPS[2], "kl": -STEPS[3],
             "mask": MASK, "reward": [1.0, 0.0]},
    "grpo": {"logp": STEPS[0], "old": STEPS[0], "ref": STEPS[1], "mask": MASK,
             "rewards": [[1.0, 0.0]]},
    "tr-dpo": PLAIN,
    "sdpo": PLAIN,
    "spo-sequential": PLAIN | lps("pi0_w", "pi0_l"),
    "modpo": PLAIN | {"m_w": np.ones(SIZE), "m_l": np.zeros(SIZE)},
}  # fmt: skip
"""Arrays with which a method's loss is well defined."""

OPTIONS = {"spo-sequential": {"stage": 1}}
"""What is said beside the arrays so that they are the ones that are read."""


def but(id: str, **changes: Any) -> dict[str, Any]:
    """A method's good arrays with some replaced; None leaves one out."""
    return {k: v for k, v in (GOOD[id] | changes).items() if v is not None}


def first(values: Any, bad: float) -> Any:
    """The values with the first replaced."""
    out = np.array(values, dtype=float)
    out.flat[0] = bad
    return out


@dataclass(frozen=True)
class Case:
    """A mistake: what is said of it, as an error, or as a warning."""

    id: str
    what: str
    says: str
    hyper: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Any] | None = None
    run: Callable[[], None] | None = None
    warns: bool = False

    def make(self) -> None:
        if self.run is not None:
            self.run()
        elif self.arrays is None:
            get(self.id)(**self.hyper)
        else:
            objective(self.id, **OPTIONS.get(self.id, {}), **self.hyper)(self.arrays)

    def check(self) -> None:
        """That the mistake is refused, or warned of, in these words."""
        if self.warns:
            with pytest.warns(PolyalignWarning, match=self.says):
                self.make()
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PolyalignWarning)
            with pytest.raises(PolyalignError, match=self.says):
                self.make()


WORLD = Bandit.make(2, 4, seed=1)


def trained(id: str, records: Sequence[Record], **hyper: Any) -> Callable[[], None]:
    """Train on records of a small exact world for a step or two."""

    def train() -> None:
        method = get(id)(**hyper)
        policy = TabularPolicy(WORLD.start)
        settings = Settings(batch=8, max_steps=2)
        run_session(Session(lambda p: method, policy, records, settings, hooks=Quiet()))

    return train


def rows(*given: dict[str, Any]) -> Callable[[], None]:
    """Read rows of a file, of which none may be malformed."""

    def read_them() -> None:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "rows.jsonl"
            file.write_text("\n".join(map(json.dumps, given)))
            reject = read(str(file)).rejects[0]
            raise DataError(f"{reject.field} {reject.reason}")

    return read_them


def quadruple(**changes: Any) -> dict[str, Any]:
    return {"prompt_1": "a", "prompt_2": "c", "completion_1": "b", "completion_2": "d"} | changes
