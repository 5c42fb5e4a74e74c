"""The ten declarations, and their relatives, in worlds that know the answer.

Everything runs through the public declarations, units, engine and loops. What has a closed form
is held against it in ``test_laboratory.py``; what has none is held against a minimiser of the
published formula that is written out here in numpy and shares no code with the objectives.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar

from polyalign.engine.scoring import Cast
from polyalign.engine.step import Engine
from polyalign.feedback.records import Binary
from polyalign.feedback.store import load
from polyalign.methods import get
from polyalign.objectives.actor_critic import discrete_actor_loss
from polyalign.policies.tabular import TabularPolicy
from polyalign.studies.lab import exact, train
from polyalign.types import Batch, Rows
from polyalign.worlds.bandit import Bandit, soft_greedy
from polyalign.worlds.discrete import total_variation
from polyalign.worlds.loglinear import LogLinear
from polyalign.worlds.sequences import Sequences, node


def softplus(x):
    return np.logaddexp(0.0, x)


def minimised(loss, size):
    """The logits that minimise a smooth loss, by scipy with central differences."""
    found = minimize(loss, np.zeros(size), jac="3-point", method="BFGS", options={"gtol": 1e-9})
    return found.x


# Pairs under flipped labels: two answers a prompt, so that every pair has its own margin.


@pytest.mark.parametrize("loss", ["dpo", "cdpo", "robust"])
def test_under_flips_robust_finds_the_clean_margin_and_the_others_a_shrunk_one(loss):
    eps, beta = 0.2, 0.5
    world = Bandit.make(6, 2, noise=eps, seed=2)
    hyper = {"beta": beta, "loss": loss} | ({} if loss == "dpo" else {"label_smoothing": eps})
    run = train("dpo", world, world.pairs(), hyper, steps=300)
    h = world.law(run.policy) - world.start
    margin = beta * (h[:, 0] - h[:, 1])
    seen = world.observed[:, 0, 1]
    expected = {
        "dpo": torch.logit(seen),
        "cdpo": torch.logit(seen * (1 - eps) + (1 - seen) * eps),
        "robust": world.reward[:, 0] - world.reward[:, 1],
    }[loss]
    assert float((margin - expected).abs().max()) < 1e-5


# Reference-free methods over answers of different lengths, by an independent minimiser.


def small_tree():
    """A tree of two tokens and an end: its prefixes, its pairs, and laws from 9 logits."""
    world = Sequences.make(1, 3, 2, eos=0, seed=1)
    prefixes = [(), (1,), (2,)]

    def logp(x):
        """Log-probability of each completion from logits [3 prefixes, 3 tokens]."""
        table = x.reshape(3, 3)
        table = table - np.log(np.exp(table).sum(1, keepdims=True))
        place = {prefix: s for s, prefix in enumerate(prefixes)}
        return np.array(
            [sum(table[place[y[:t]], v] for t, v in enumerate(y)) for y in world.completions]
        )

    index = {y: i for i, y in enumerate(world.completions)}
    pairs = [(index[p.chosen], index[p.rejected], p.weight) for p in world.pairs()]
    w, l, weight = (np.array(column) for column in zip(*pairs, strict=True))  # noqa: E741
    lengths = np.array([len(y) for y in world.completions])
    assert set(lengths) == {1, 2}
    return world, logp, w, l, weight / weight.sum(), lengths


@pytest.mark.parametrize(("smoothing", "sft"), [(0.0, 0.0), (0.1, 0.2)])
def test_simpo_ends_where_its_formula_is_smallest(smoothing, sft):
    world, logp, w, l, weight, n = small_tree()  # noqa: E741

    def formula(x):
        lp = logp(x)
        a = lp / n
        z = 4.0 * (a[w] - a[l]) - 4.0 * 0.3
        value = (1 - smoothing) * softplus(-z) + smoothing * softplus(z)
        nll = -(weight * lp[w]).sum() / (weight * n[w]).sum()
        return (weight * value).sum() + sft * nll

    expected = torch.tensor(logp(minimised(formula, 9)))
    hyper = {
        "beta": 4.0,
        "gamma_beta_ratio": 0.3,
        "label_smoothing": smoothing,
        "sft_weight": sft,
    }
    run = train("simpo", world, world.pairs(), hyper)
    assert total_variation(world.law(run.policy)[0], expected) < 1e-5


def test_orpo_ends_where_its_formula_is_smallest():
    world, logp, w, l, weight, n = small_tree()  # noqa: E741

    def formula(x):
        lp = logp(x)
        a = lp / n
        odds = a - np.log(-np.expm1(a))
        nll = -(weight * lp[w]).sum() / (weight * n[w]).sum()
        return nll + 0.5 * (weight * softplus(-(odds[w] - odds[l]))).sum()

    expected = torch.tensor(logp(minimised(formula, 9)))
    run = train("orpo", world, world.pairs(), {"lam": 0.5})
    assert total_variation(world.law(run.policy)[0], expected) < 1e-5


def test_a_reference_free_method_does_not_depend_on_where_the_reference_is():
    world = Bandit.make(2, 4)
    moved = replace(world, start=torch.zeros_like(world.start).log_softmax(-1))
    hyper = {"beta": 2.0}
    ends = [train("simpo", w, world.pairs(), hyper, steps=300).policy for w in (world, moved)]
    assert world.distance(ends[0], world.law(ends[1])) < 1e-5


# KTO: a fixed point, since the zero point follows the policy.


def test_kto_ends_at_its_fixed_point_with_a_positive_zero_point():
    beta, lam_d, lam_u = 0.5, 1.0, 1.2
    world = Bandit.make(2, 5, reference="uniform")
    up = np.array([[0.75, 0.8], [0.85, 0.8]])
    # Only answers 0 and 1 have feedback, both mostly good: they rise above the reference together.
    records = [
        Binary(
            key=f"{x}{y}{label}",
            prompt=x,
            completion=y,
            label=label,
            weight=up[x, y] if label else 1 - up[x, y],
        )
        for x in (0, 1)
        for y in (0, 1)
        for label in (True, False)
    ]
    hyper = {"beta": beta, "lam_D": lam_d, "lam_U": lam_u}
    run = train("kto", world, records, hyper)

    # How often answer 0 or 1 is the mismatched one of a record, from the units themselves.
    share = np.zeros((2, 2))
    for epoch in range(200):
        batch = run.batch(epoch)
        rows = batch.roles["mismatched"]
        prompts = torch.tensor(batch.rows.contexts)[batch.rows.context[rows]]
        np.add.at(share, (prompts.numpy(), batch.rows.steps[rows, 0].numpy()), batch.weight.numpy())
    share /= share.sum()

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def loss(q, x, z0):
        h = np.log(np.array([q, 1 - q]) * 5)
        good, bad = sigmoid(beta * (h - z0)), sigmoid(beta * (z0 - h))
        return (up[x] * lam_d * (1 - good) + (1 - up[x]) * lam_u * (1 - bad)).sum()

    q, z0 = np.full(2, 0.5), 0.0
    for _ in range(200):
        h = np.log(np.stack([q, 1 - q], 1) * 5)
        z0 = max(0.0, float((share * h).sum()))
        q = np.array(
            [
                minimize_scalar(
                    loss, bounds=(1e-6, 1 - 1e-6), args=(x, z0), options={"xatol": 1e-12}
                ).x
                for x in (0, 1)
            ]
        )
    assert z0 > 0.5
    law = world.law(run.policy).exp()
    assert float(law[:, 2:].max()) < 1e-3
    np.testing.assert_allclose(law[:, 0], q, atol=0.01)
    assert float(run.session.states[0]["z0"]) == pytest.approx(z0, abs=0.05)


# AOT: distributions rather than pairs.


@pytest.mark.parametrize("form", ["paired", "unpaired"])
def test_aot_with_one_pair_a_step_walks_exactly_dpos_way(form):
    world = Bandit.make(2, 6)
    records = world.pairs(12, seed=1)
    settings = exact(1, 3, lr=0.05)
    beta = {"beta": 0.5}
    aot = train("aot", world, records, beta | {"form": form}, settings=settings, steps=36)
    dpo = train("dpo", world, records, beta, settings=settings, steps=36)
    assert aot.session.position["step"] == 36
    torch.testing.assert_close(world.law(aot.policy), world.law(dpo.policy), rtol=0, atol=1e-12)
    assert float((world.law(dpo.policy) - world.start).abs().max()) > 0.1


@pytest.mark.parametrize("form", ["paired", "unpaired"])
def test_aots_sorted_coupling_costs_no_more_than_dpos_pairs(form):
    world = Bandit.make(3, 6, noise=0.3)
    records = world.pairs(64, seed=0)
    dpo = train("dpo", world, records, {"beta": 0.5}, steps=60)
    settings = exact(64, 1, lr=1e-12)
    same = {"settings": settings, "steps": 20, "policy": dpo.policy}
    # The reference of this second run is where DPO ended, so both are evaluated with it.
    aot = train("aot", world, records, {"beta": 0.5, "form": form}, **same)
    aot.session.cast.references["ref"] = dpo.session.cast.references["ref"]
    aot.session.references.caches.clear()
    assert aot.loss() < dpo.loss()


# Instructions as well as answers.


def test_iopo_follows_instructions_and_answers_that_it_never_saw_together():
    world = LogLinear.make(8, 20, seed=3)
    known, new = torch.arange(14), torch.arange(14, 20)
    records = world.quadruples(800, seed=0, responses=known)
    run = train("iopo", world, records, {"beta": 0.5}, steps=120)
    # What quadruples identify is compared: terms of the prompt or the answer alone are free.
    law = world.start + world.log_ratio_interaction(world.law(run.policy))
    response, instruction = world.accuracies(law, new)
    assert response > 0.8
    assert instruction > 0.8


# Token level: whole laws of a live reference.


def test_tdpo_without_its_correction_is_dpo():
    world = Sequences.make(1, 3, 3)
    records = world.pairs(100)
    tdpo = train("tdpo", world, records, {"beta": 0.3, "alpha": 0.0}, steps=60)
    dpo = train("dpo", world, records, {"beta": 0.3}, steps=60)
    torch.testing.assert_close(world.law(tdpo.policy), world.law(dpo.policy), rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", ["tdpo1", "tdpo2"])
def test_tdpos_loss_is_its_formula_over_all_27_sequences(variant):
    world = Sequences.make(1, 3, 3, seed=2)
    run = train("tdpo", world, world.pairs(200), {"beta": 0.4, "variant": variant}, steps=40)
    table = run.policy.tensors()["logits"].log_softmax(-1)[0].numpy()
    ref = world.logits[0].numpy()

    def along(y):
        states = [node(y[:t], 3) for t in range(3)]
        ratio = sum(table[s, v] - ref[s, v] for s, v in zip(states, y, strict=True))
        return ratio, sum(np.exp(ref[s]) @ (ref[s] - table[s]) for s in states)

    alpha = 1.0 if variant == "tdpo1" else 0.5
    values = []
    for pair in run.session.records:
        (h_w, d_w), (h_l, d_l) = along(pair.chosen), along(pair.rejected)
        values.append(softplus(-0.4 * ((h_w - h_l) - alpha * (d_l - d_w))))
    assert run.loss() == pytest.approx(np.mean(values), rel=1e-10)


# Values with their own update.


def test_at_oreos_fixed_point_both_losses_vanish():
    world = Sequences.make(1, 3, 2, eos=0)
    run = train("oreo", world, world.scored(), {"beta": 0.5, "alpha": 0.0}, steps=350)
    session = run.session
    batch = run.batch()
    for update, state in zip(session.stage.updates, session.states, strict=True):
        assert session.engine.evaluate(update, batch, state).loss < 1e-9


# Stages, selection and the policy's own pairs.


def test_sera_drops_flips_makes_pairs_of_its_own_and_beats_dpo_on_noisy_labels():
    world = Bandit.make(8, 12, noise=0.25, seed=1)
    records = world.pairs(800, seed=0)
    hyper = {"beta": 0.5}
    sera = train("sera", world, records, hyper | {"n_iter": 3}, settings=exact(4000, 80), steps=240)
    dpo = train("dpo", world, records, hyper, settings=exact(4000, 240), steps=240)
    flipped = {p.key: p.meta["flipped"] for p in records}
    kept = [load(data) for data in sera.session.hooks.get("stage-1-records")]
    own = [p for p in kept if p.key not in flipped]
    inside = [flipped[p.key] for p in kept if p.key in flipped]
    assert len(inside) == math.ceil(0.7 * 800)
    assert np.mean(inside) < 0.8 * np.mean(list(flipped.values()))
    assert own
    assert all(p.chosen != p.rejected for p in own)
    assert world.point(sera.policy).reward > world.point(dpo.policy).reward


# Rollouts with credit.


def test_grpos_expected_gradient_at_the_sampling_policy_is_the_policy_gradient():
    """All groups of two out of three answers, weighted by their probability: no sampling noise."""
    world = Bandit.make(1, 3, seed=4)
    method = get("grpo")(G=2, beta=0.0, aggregation="dr_grpo", L_max=1)
    stage = method.stages[0]
    policy = TabularPolicy(world.start)
    pi, r = world.start[0].exp(), world.reward[0]
    pairs = [(a, b) for a in range(3) for b in range(3)]
    chosen = torch.tensor(pairs)
    credit = stage.credit(
        r[chosen],
        lengths=torch.ones(9, 2, dtype=torch.long),
        finished=torch.ones(9, 2, dtype=torch.bool),
    )
    rows = Rows.collate([policy.encode(0, y) for pair in pairs for y in pair])
    weight = (pi[chosen[:, 0]] * pi[chosen[:, 1]]).repeat_interleave(2)
    batch = Batch(
        rows,
        {"own": torch.arange(18)},
        weight,
        {name: value.reshape(18) for name, value in credit.items() if name != "keep"},
        tuple(map(str, range(18))),
        old=policy.score(rows).logp.detach(),
    )
    Engine(Cast(policy, {}, {})).backward(stage.updates[0], batch, {})
    gradient = pi * (r - (pi * r).sum())
    # A group's mean holds the sample itself, which shrinks the gradient by (G - 1)/G.
    torch.testing.assert_close(policy.parameter.grad[0], -0.5 * gradient)


def test_grpo_with_a_reference_stays_nearer_to_it():
    world = Bandit.make(4, 8)
    settings = exact(32, 60)
    hyper = {"L_max": 1, "G": 8}
    free, held = (
        world.point(
            train("grpo", world, world.asked(), hyper | {"beta": b}, settings=settings).policy
        )
        for b in (0.0, 1.0)
    )
    assert held.kl < 0.7 * free.kl
    assert world.point(world.start).reward < held.reward < free.reward


# Control in one state.


def test_sacs_exact_actor_loss_in_one_state_is_minimised_by_softmax_of_q_over_alpha():
    q = torch.tensor([0.3, -1.0, 0.9, 0.1], dtype=torch.float64)
    alpha = torch.tensor(0.4, dtype=torch.float64)
    expected, value = soft_greedy(q, 0.4)

    def loss(x):
        logp = torch.tensor(x).log_softmax(-1)
        return float(discrete_actor_loss(logp, q.unsqueeze(0), alpha))

    logits = minimised(loss, 4)
    assert total_variation(torch.tensor(logits).log_softmax(-1), expected) < 1e-6
    assert -loss(logits) == pytest.approx(float(value), abs=1e-10)
