"""T37 for references that move: a continued session has them where the stopped one left them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polyalign.feedback.records import Pair
from polyalign.loops.run import run
from polyalign.loops.session import Quiet, Session, Settings
from polyalign.objectives.pairwise import Pairwise
from polyalign.objectives.rewards import SumLogRatio
from polyalign.policies.language.adapters import LoraSpec
from polyalign.recipe import Method, Reference, Stage, Update
from tests.engine.test_step import pairs, policy
from tests.policies import tiny

TEXTS = [
    Pair(key=f"t{i}", prompt="the cat", chosen=" sat" * (1 + i % 3), rejected=" ran after")
    for i in range(12)
]
KINDS: dict[str, Any] = {
    "a table": (policy, pairs(12)),
    "all weights": (tiny.policy, TEXTS),
    "an adapter": (lambda: tiny.policy(lora=LoraSpec(r=2, alpha=4)), TEXTS),
}


class Stop(Exception):
    """The session ends here."""


class Stopping(Quiet):
    """Keeps the state after a number of steps, and stops there."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after
        self.tree: Any = None

    def boundary(self, session: Session) -> None:
        if session.position["step"] == self.after:
            self.tree = session.state()
            raise Stop


def session(kind: str, reference: Reference, hooks: Quiet) -> Session:
    make, records = KINDS[kind]
    objective = Pairwise(SumLogRatio(), scale=0.5)
    method = Method((Stage((Update(objective),), references={"ref": reference}),))
    settings = Settings(batch=4, lr=0.02, warmup=0.0, epochs=2, schedule="constant")
    return Session(lambda progress: method, make(), records, settings, hooks=hooks)


@pytest.mark.parametrize("after", [1, 3, 4])
@pytest.mark.parametrize(
    "reference", [Reference(), Reference(every=2, mix=0.5)], ids=["standing", "moving"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_t37_a_reference_is_where_it_was_when_the_session_stopped(kind, reference, after):
    whole = session(kind, reference, Quiet())
    run(whole)
    hooks = Stopping(after)
    with pytest.raises(Stop):
        run(session(kind, reference, hooks))
    rest = Quiet()
    rest.kept = hooks.kept
    second = session(kind, reference, rest)
    second.restore(hooks.tree)
    run(second, opened=True)
    assert rest.rows == whole.hooks.rows[after:]
    for name, value in whole.policy.tensors().items():
        assert torch.equal(value, second.policy.tensors()[name])
    one, other = (s.cast.references["ref"].tensors() for s in (whole, second))
    for name, value in one.items():
        assert torch.equal(value, other[name])
    began = session(kind, reference, Quiet()).start.tensors()
    stood = all(torch.equal(began[name], value) for name, value in one.items())
    assert stood == (reference.every == 0)
