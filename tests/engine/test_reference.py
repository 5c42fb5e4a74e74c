"""References stand still: what training moves never moves them."""

from __future__ import annotations

import pytest
import torch

from polyalign.loops.run import run
from polyalign.loops.session import Quiet, Session, Settings
from polyalign.methods import get
from polyalign.objectives.pairwise import Pairwise
from polyalign.objectives.rewards import SumLogRatio
from polyalign.recipe import Method, Reference, Stage, Update
from tests.engine.test_step import pairs, policy


def session(method: Method, **settings) -> Session:
    return Session(
        lambda progress: method,
        policy(),
        pairs(12),
        Settings(batch=4, lr=0.05, warmup=0.0, **settings),
        hooks=Quiet(),
    )


def test_the_start_is_a_copy_that_training_does_not_move():
    """T41: policy and reference are never the same object."""
    running = session(get("dpo")(beta=0.5), epochs=3)
    before = {name: value.clone() for name, value in running.start.tensors().items()}
    run(running)
    for name, value in running.start.tensors().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
        assert not torch.equal(value, running.policy.tensors()[name])


def test_the_first_loss_is_log_two():
    """T34: at the start policy and reference agree."""
    running = session(get("dpo")(beta=0.5))
    run(running)
    assert running.hooks.rows[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-12)


def test_cached_and_live_references_train_alike():
    """T39: a cache is of one set of weights; over several epochs it changes nothing."""
    cached = session(get("dpo")(beta=0.5), epochs=2)
    run(cached)
    assert cached.references.caches
    live = session(get("dpo")(beta=0.5), epochs=2)
    live.open()
    live.references.caches = {}
    run(live, opened=True)
    for name, value in live.policy.tensors().items():
        torch.testing.assert_close(value, cached.policy.tensors()[name], rtol=0, atol=1e-12)


def test_a_moving_reference_follows_the_policy_and_is_not_cached():
    objective = Pairwise(SumLogRatio(), scale=0.5)
    moving = Method((Stage((Update(objective),), references={"ref": Reference(every=1, mix=1.0)}),))
    running = session(moving, epochs=2)
    run(running)
    assert not running.references.caches
    followed = running.cast.references["ref"].tensors()
    for name, value in running.policy.tensors().items():
        torch.testing.assert_close(value, followed[name])
    start = running.start.tensors()
    assert any(not torch.equal(start[name], value) for name, value in followed.items())


def test_evaluation_is_one_weighted_mean_and_moves_nothing():
    """T49: not a mean of means over micro-batches of unequal sizes."""
    from polyalign.loops.epochs import evaluate

    running = session(get("dpo")(beta=0.5), budget=20)
    running.eval_records = pairs(7, seed=5)
    running.open()
    with torch.no_grad():
        for value in running.policy.trainable().values():
            value.add_(torch.randn(value.shape, dtype=value.dtype))
    before = {n: v.clone() for n, v in running.policy.tensors().items()}
    many = evaluate(running)
    running.engine.budget = None
    once = evaluate(running)
    assert many == pytest.approx(once, rel=1e-9)
    for name, value in running.policy.tensors().items():
        assert torch.equal(value, before[name])
