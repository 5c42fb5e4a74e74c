"""Updates at the same parameters: one pass for all, and the numbers of a pass for each."""

from __future__ import annotations

import pytest
import torch

from polyalign.engine.scoring import Cast
from polyalign.engine.step import Engine
from polyalign.objectives import DroPolicy, DroValue, OreoPolicy, OreoValue
from polyalign.policies.language.adapters import LoraSpec
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.recipe import Update
from polyalign.types import Batch, Row, Rows
from tests.policies import tiny
from tests.policies.test_architectures import stirred

UPDATES = {
    "oreo": (Update(OreoValue(0.3), trains=("value",)), Update(OreoPolicy(0.3, 0.1))),
    "oreo without a divergence": (
        Update(OreoValue(0.3), trains=("value",)),
        Update(OreoPolicy(0.3, 0.0)),
    ),
    "dro": (Update(DroValue(0.5), trains=("value",)), Update(DroPolicy(0.5))),
}


def batch() -> Batch:
    made = torch.Generator().manual_seed(3)
    rows = []
    for i in range(6):
        size = 3 + int(torch.randint(0, 5, (1,), generator=made))
        steps = torch.randint(0, 40, (size,), generator=made)
        rows.append(Row((7, 9, i % 2), steps, torch.ones(size, dtype=torch.bool)))
    n = len(rows)
    reward = torch.randn(n, generator=made, dtype=torch.float64)
    weight = torch.rand(n, generator=made, dtype=torch.float64) + 0.1
    keys = tuple(str(i) for i in range(n))
    return Batch(Rows.collate(rows), {"own": torch.arange(n)}, weight, {"reward": reward}, keys)


def cast() -> Cast:
    policy = tiny.policy("llama", torch.float64, LoraSpec(r=2, alpha=4))
    reference = policy.freeze()
    stirred(policy)
    value = policy.build("value", {})
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in value.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return Cast(policy, {"ref": reference}, {"value": value})


def gradients(cast: Cast) -> dict[str, torch.Tensor]:
    found = {f"policy/{n}": p.grad for n, p in cast.policy.trainable().items()}
    found |= {f"value/{n}": p.grad for n, p in cast.modules["value"].named_parameters()}
    assert all(g is not None for g in found.values())
    return {name: g.clone() for name, g in found.items()}


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("budget", [None, 12])
def test_one_pass_gives_what_a_pass_for_each_update_gives(name, budget):
    updates, made = UPDATES[name], batch()
    together, apart = cast(), cast()
    engine = Engine(apart, budget)
    single = [engine.backward(update, made, {})[0] for update in updates]
    joint = [report for report, _ in Engine(together, budget).backward_all(updates, made, ({}, {}))]
    for one, other in zip(joint, single, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-12)
        assert one.metrics == pytest.approx(other.metrics, rel=1e-12)
    expected = gradients(apart)
    assert sum(float(g.abs().sum()) for g in expected.values()) > 0
    for key, value in gradients(together).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-10, atol=1e-12)
    # What is computed once is counted once.
    assert sum(report.tokens for report in joint) == single[0].tokens


def test_policy_reference_and_value_compute_once_each(monkeypatch):
    made, actors = batch(), cast()
    plain, seen = LanguagePolicy._computed, []
    monkeypatch.setattr(
        LanguagePolicy, "_computed", lambda self, rows: seen.append(self) or plain(self, rows)
    )
    Engine(actors).backward_all(UPDATES["oreo"], made, ({}, {}))
    assert seen[:2] == [actors.references["ref"], actors.policy]
    assert len(seen) == 3


def test_updates_of_different_rows_have_passes_of_their_own():
    from polyalign.objectives.likelihood import Likelihood

    made, actors = batch(), cast()
    updates = (Update(DroValue(0.5), trains=("value",)), Update(Likelihood("token")))
    made.roles["target"] = made.roles["own"]
    reports = Engine(actors).backward_all(updates, made, ({}, {}))
    assert [report.tokens > 0 for report, _ in reports] == [True, True]
    gradients(actors)
