"""Rounds: the law that drew is the law the ratio is built from, and rewards are told exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from polyalign.errors import NumericsError
from polyalign.feedback.records import Prompt
from polyalign.loops import rounds
from polyalign.loops.run import run
from polyalign.loops.session import Quiet, Session, Settings
from polyalign.methods import get
from polyalign.policies.tabular import SequencePolicy
from polyalign.protocols import Rollout, Sampling, Verdict
from polyalign.types import Row, Rows

V, LENGTH, PROMPTS = 3, 2, 4


class Sums:
    """A judge that likes large steps; ``far`` moves all its scores."""

    def __init__(self, far: float = 0.0) -> None:
        self.far = far

    def __call__(self, prompts, completions, meta):
        scores = torch.tensor([float(sum(c)) for c in completions], dtype=torch.float64)
        return Verdict(score=scores + self.far)


def policy() -> SequencePolicy:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(PROMPTS, 1 + V, V, generator=draw, dtype=torch.float64)
    return SequencePolicy(logits, LENGTH)


def session(sampling: Sampling, judge=None, batch: int = 32, lr: float = 0.5, **hyper) -> Session:
    made = get("grpo")(G=8, L_max=LENGTH, **hyper)
    return Session(
        lambda progress: made,
        policy(),
        [Prompt(key=f"q{i}", prompt=i) for i in range(PROMPTS)],
        Settings(batch=batch, lr=lr, warmup=0.0, schedule="constant", sampling=sampling),
        hooks=Quiet(),
        judge=judge or Sums(),
    )


def collected(running: Session, how: Sampling):
    running.open()
    return rounds._collect(running, running.records, 8, how, 0)[0]


def tempered(logp: torch.Tensor, how: Sampling) -> torch.Tensor:
    """The law that draws [V] from the policy's [V], from its definition."""
    law = (logp / how.temperature).softmax(-1)
    order = law.argsort(descending=True)
    before = law[order].cumsum(0) - law[order]
    kept = torch.zeros_like(law).index_put((order[before < how.top_p],), torch.ones(()).double())
    return (law * kept / (law * kept).sum()).log()


@pytest.mark.parametrize(
    "how",
    [Sampling(), Sampling(temperature=0.5), Sampling(temperature=2.0, top_p=0.7)],
    ids=["as it is", "colder", "warmer and cut"],
)
def test_t22_t23_t24_the_ratio_is_policy_over_the_law_that_drew(how):
    """Temperature and truncation stand in ``old``, with the mass that the cut gave away."""
    how = replace(how, max_steps=LENGTH)
    running = session(how)
    batch = collected(running, how)
    with torch.no_grad():
        logp = running.policy.score(batch.rows).logp
    root = next(iter(running.policy.trainable().values())).detach()[:, 0].log_softmax(-1)
    prompts = [int(key[1:].split("#")[0]) for key in batch.keys]
    first = batch.rows.steps[:, 0]
    law = torch.stack([tempered(root[p], how) for p in prompts])
    drawn = law.gather(1, first[:, None])[:, 0]
    torch.testing.assert_close(batch.old[:, 0].double(), drawn, rtol=0, atol=1e-6)
    own = root[prompts].gather(1, first[:, None])[:, 0]
    torch.testing.assert_close(logp[:, 0], own, rtol=0, atol=1e-9)
    same = torch.allclose(logp, batch.old.double(), rtol=0, atol=1e-9)
    assert same == (how == Sampling(max_steps=LENGTH))


def test_t24_the_ratio_is_one_in_the_first_pass_and_moves_in_the_second():
    """A ratio made of ``logp - logp.detach()`` would be one in every pass and never clip."""
    running = session(Sampling(max_steps=LENGTH), inner_epochs=3, beta=0.0)
    run(running)
    first, second, third = running.hooks.rows[:3]
    assert first["clip_ratio/region"] == 0.0
    assert first["loss"] == pytest.approx(0.0, abs=1e-12)
    assert second["clip_ratio/region"] > 0.0
    assert third["loss"] != second["loss"]


def test_t27_groups_of_equal_rewards_train_nothing_and_stay_finite():
    running = session(Sampling(max_steps=LENGTH), lambda p, c, m: Verdict(score=torch.ones(len(c))))
    before = {n: v.clone() for n, v in running.policy.tensors().items()}
    run(running)
    row = running.hooks.rows[0]
    assert row["reward_std"] == 0.0
    assert row["grad_norm"] == 0.0
    for name, value in running.policy.tensors().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("dynamic", [False, True])
def test_t27_rewards_far_from_zero_train_as_near_ones(dynamic):
    """Both the told spread and the advantages are measured from the mean."""
    near, far = (
        session(Sampling(max_steps=LENGTH), Sums(shift), dynamic_sampling=dynamic)
        for shift in (0.0, 2.0**30)
    )
    for running in (near, far):
        run(running)
    one, other = near.hooks.rows[0], far.hooks.rows[0]
    assert one["reward_std"] > 0.1
    assert other["reward_std"] == pytest.approx(one["reward_std"], rel=1e-9)
    for name, value in near.policy.tensors().items():
        torch.testing.assert_close(far.policy.tensors()[name], value, rtol=1e-6, atol=1e-9)


def test_t27_the_told_spread_is_the_populations():
    rows = [Row(0, torch.zeros(n), torch.ones(n, dtype=torch.bool)) for n in (1, 2, 3, 2)]
    nothing = torch.zeros(4, 3)
    finished = torch.tensor([True, True, False, True])
    rollout = Rollout(tuple(rows), nothing, nothing, finished, (None,) * 4, 1)
    reward = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64) + 1e12
    told = rounds._measure(reward, Rows.collate(rows), rollout)
    assert told["reward"] == 1e12 + 2.5
    assert told["reward_std"] == pytest.approx(1.25**0.5, rel=1e-9)
    assert told["completions/mean_length"] == 2.0
    assert told["completions/clipped_ratio"] == 0.25


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_t27_a_score_that_is_no_number_stops_the_round(bad):
    running = session(
        Sampling(max_steps=LENGTH), lambda p, c, m: Verdict(score=torch.full((len(c),), bad))
    )
    with pytest.raises(NumericsError, match="some are not finite"):
        run(running)


@pytest.mark.parametrize(("asked", "budget", "longest"), [(1, 2, 1), (128, 2, 2), (2, 64, 2)])
def test_the_smaller_of_the_users_and_the_methods_sampling_limits_holds(
    asked, budget, longest, monkeypatch
):
    seen = []
    running = session(Sampling(max_steps=asked))
    made = get("grpo")(G=8, L_max=budget)
    running.make, running.method = (lambda progress: made), made
    draw = running.policy.sample
    monkeypatch.setattr(
        running.policy,
        "sample",
        lambda contexts, n, how, seeds: seen.append(how.max_steps) or draw(contexts, n, how, seeds),
    )
    run(running)
    assert set(seen) == {longest}
