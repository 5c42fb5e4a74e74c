"""References that move, stages over data and objectives: numbers from the cards, and the runs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from polyalign import objective
from polyalign.errors import DataError, NeedsError, OptionError, PolyalignWarning
from polyalign.feedback.records import Binary, Pair
from polyalign.loops.run import run
from polyalign.loops.session import Quiet, Session, Settings
from polyalign.methods import get
from polyalign.policies.tabular import TabularPolicy
from polyalign.runs.config import configure
from polyalign.runs.prepare import refuse_unused
from polyalign.worlds.bandit import Bandit
from tests.methods.by_hand import close, neg_logsig, pairs, sig

A = pairs(seed=4)
SIZE = len(A["lp_w"])
DRAW = np.random.default_rng(8)
OTHERS = {f"pi{k}_{side}": -DRAW.uniform(2, 20, SIZE) for k in range(3) for side in "wl"}


def gap(a, name):
    return a[f"{name}_w"] - a[f"{name}_l"]


# spo-sequential


def test_spo_first_round_is_dpo():
    given = {k: v for k, v in A.items() if k[0] != "n"}
    first = objective("spo-sequential", beta=0.3)(given)
    dpo = objective("dpo", beta=0.3)(given)
    close(first.per_unit, dpo.per_unit)
    close(first.gradients["lp_w"], dpo.gradients["lp_w"])


def test_spo_second_round_subtracts_the_first_rounds_implicit_reward():
    beta1, beta2, lam = 0.5, 0.2, 0.7
    given = {k: A[k] for k in ("lp_w", "lp_l", "rf_w", "rf_l")}  # the reference is pi_1
    given |= {k: OTHERS[k] for k in ("pi0_w", "pi0_l")}
    g1 = beta1 * (gap(A, "rf") - gap(OTHERS, "pi0"))
    z = beta2 * (gap(A, "lp") - gap(A, "rf")) - lam * g1
    result = objective("spo-sequential", stage=1, beta=(beta1, beta2), lam=lam)(given)
    close(result.per_unit, neg_logsig(z))
    close(result.gradients["lp_w"], -beta2 / SIZE * sig(-z))
    close(result.gradients["lp_l"], beta2 / SIZE * sig(-z))


def test_spo_third_round_uses_recursive_implicit_rewards():
    betas, lam = (0.5, 0.4, 0.3), (0.6, 0.2)
    given = {k: A[k] for k in ("lp_w", "lp_l", "rf_w", "rf_l")}  # the reference is pi_2
    given |= {k: v for k, v in OTHERS.items() if k[2] in "01"}
    pi = [gap(OTHERS, "pi0"), gap(OTHERS, "pi1"), gap(A, "rf")]
    g1 = betas[0] * (pi[1] - pi[0])
    g2 = betas[1] * (pi[2] - pi[1]) - lam[0] * g1
    z = betas[2] * (gap(A, "lp") - pi[2]) - lam[0] * g1 - lam[1] * g2
    result = objective("spo-sequential", stage=2, rounds=3, beta=betas, lam=lam)(given)
    close(result.per_unit, neg_logsig(z))
    close(result.gradients["lp_w"], -betas[2] / SIZE * sig(-z))


def test_spo_without_lam_is_dpo_against_the_last_policy():
    given = {k: A[k] for k in ("lp_w", "lp_l", "rf_w", "rf_l")}
    second = objective("spo-sequential", stage=1, beta=0.2, lam=0)(given)
    close(second.per_unit, objective("dpo", beta=0.2)(given).per_unit)


def test_spo_is_modpo_with_the_earlier_reward_as_margin():
    beta, lam = 0.4, 0.3
    given = {k: A[k] for k in ("lp_w", "lp_l", "rf_w", "rf_l")}
    reward = {
        f"m_{s}": beta * (A[f"rf_{s}"] - OTHERS[f"pi0_{s}"]) for s in "wl"
    }  # R_1 = beta log(pi_1 / pi_0)
    earlier = {k: OTHERS[k] for k in ("pi0_w", "pi0_l")}
    spo = objective("spo-sequential", stage=1, beta=beta, lam=lam)(given | earlier)
    with pytest.warns(PolyalignWarning, match=r"add up to 1\.3"):
        modpo = objective("modpo", beta=beta, w=(1.0, lam))
    close(spo.per_unit, modpo(given | reward).per_unit)


def test_spo_needs_the_earlier_policies_and_a_lam_for_each_round_but_the_last():
    given = {k: A[k] for k in ("lp_w", "lp_l", "rf_w", "rf_l")}
    with pytest.raises(OptionError, match="needs the array 'pi0_w'"):
        objective("spo-sequential", stage=1)(given)
    with pytest.raises(OptionError, match="lam has 3 numbers. Give one, or 2"):
        get("spo-sequential")(rounds=3, lam="0.1,0.2,0.3")
    with pytest.raises(OptionError, match="2 dimensions for rounds=3"):
        get("spo-sequential")(rounds=3, dimensions="help,harm")
    with pytest.raises(OptionError, match="no stage 2"):
        objective("spo-sequential", stage=2)


# modpo


def margins(*names):
    draw = np.random.default_rng(5)
    return {f"{n}_{s}": draw.normal(0, 2, SIZE) for n in names for s in "wl"}


@pytest.mark.parametrize("link", ["logistic", "hinge"])
def test_modpo_loss_and_gradient_are_the_cards(link):
    beta, w0, w1 = 0.4, 0.3, 0.7
    m = margins("m")
    given = {k: A[k] for k in ("lp_w", "lp_l", "rf_w", "rf_l")} | m
    d = gap(A, "lp") - gap(A, "rf")
    z = (beta * d - w1 * gap(m, "m")) / w0
    result = objective("modpo", w=(w0, w1), beta=beta, link=link)(given)
    slope = -sig(-z) if link == "logistic" else -(z < 1).astype(float)
    close(result.per_unit, neg_logsig(z) if link == "logistic" else np.maximum(0, 1 - z))
    close(result.gradients["lp_w"], beta / (w0 * SIZE) * slope)
    close(result.gradients["lp_l"], -beta / (w0 * SIZE) * slope)
    assert np.count_nonzero(slope) > 0


def test_modpo_takes_several_columns_and_policies_in_the_order_of_the_weights():
    w, beta, other = (0.4, 0.1, 0.2, 0.3), 0.5, 0.2
    m = margins("help", "safe")
    policy = {f"policy1_{s}": OTHERS[f"pi2_{s}"] for s in "wl"}
    given = {k: A[k] for k in ("lp_w", "lp_l", "rf_w", "rf_l")} | m | policy
    implicit = other * (gap(OTHERS, "pi2") - gap(A, "rf"))
    total = w[1] * gap(m, "help") + w[2] * gap(m, "safe") + w[3] * implicit
    z = (beta * (gap(A, "lp") - gap(A, "rf")) - total) / w[0]
    made = objective(
        "modpo", w=w, beta=beta, rewards="help,safe", policies="runs/x", policies_beta=other
    )
    close(made(given).per_unit, neg_logsig(z))


def test_modpo_of_one_objective_is_dpo_and_of_constant_margins_dpo_at_beta_over_w0():
    given = {k: A[k] for k in ("lp_w", "lp_l", "rf_w", "rf_l")}
    close(objective("modpo", w=1.0)(given).per_unit, objective("dpo")(given).per_unit)
    same = {"m_w": np.full(SIZE, 3.0), "m_l": np.full(SIZE, 3.0)}
    modpo = objective("modpo", w=(0.25, 0.75), beta=0.1)(given | same)
    close(modpo.per_unit, objective("dpo", beta=0.4)(given).per_unit)


def test_modpo_scales_with_beta_and_margins_together():
    given, m = {k: A[k] for k in ("lp_w", "lp_l", "rf_w", "rf_l")}, margins("m")

    def z(factor):
        more = {k: factor * v for k, v in m.items()}
        loss = objective("modpo", beta=0.02 * factor)(given | more).per_unit
        return -np.log(np.expm1(loss))

    close(z(2.0), 2.0 * z(1.0), 1e-6)


# tr-dpo: what the reference does, on a policy whose every number is at hand.

WORLD = Bandit.make(2, 4, seed=3)


class Watch(Quiet):
    """Keeps policy and reference after each step, and what each stage began with."""

    def __init__(self):
        super().__init__()
        self.path = []

    def step(self, session, row):
        super().step(session, row)
        now = session.policy.tensors()["logits"].clone()
        self.path.append((now, session.cast.references["ref"].tensors()["logits"].clone()))


def session(id, records, hooks=None, *, steps=6, settings=None, **hyper):
    method = get(id)(**hyper)
    settings = settings or Settings(
        batch=len(records), epochs=float(steps), lr=0.1, warmup=0.0, schedule="constant", clip=None
    )
    policy = TabularPolicy(WORLD.start)
    return Session(lambda progress: method, policy, records, settings, hooks=hooks or Watch())


@pytest.mark.parametrize(
    ("options", "every", "mix"),
    [
        ({"form": "soft", "alpha": 0.3}, 1, 0.3),
        ({"form": "soft"}, 1, 0.6),
        ({"form": "hard", "tau": 2}, 2, 1.0),
        ({"form": "both", "alpha": 0.5, "tau": 3}, 3, 0.5),
        ({"form": "hard", "tau": 100}, 100, 1.0),
    ],
)
def test_tr_dpo_reference_follows_the_recursion_on_the_policys_path(options, every, mix):
    made = session("tr-dpo", WORLD.pairs(), beta=0.5, **options)
    phi = WORLD.start.clone()
    run(made)
    for s, (theta, reference) in enumerate(made.hooks.path, 1):
        if s % every == 0:
            phi = mix * theta + (1 - mix) * phi
        close(reference.numpy(), phi.numpy(), 1e-12)


def test_tr_dpo_with_a_copy_at_each_step_stays_at_log_2():
    made = session("tr-dpo", WORLD.pairs(), form="hard", tau=1)
    run(made)
    close([row["loss"] for row in made.hooks.rows], math.log(2), 1e-12)


def test_tr_dpo_jumps_back_to_log_2_after_a_hard_update():
    made = session("tr-dpo", WORLD.pairs(), form="hard", tau=3, beta=1.0)
    run(made)
    losses = [row["loss"] for row in made.hooks.rows]
    close([losses[0], losses[3]], math.log(2), 1e-12)
    assert max(losses[1], losses[2], losses[4], losses[5]) < math.log(2) - 1e-6


@pytest.mark.parametrize("base", ["dpo", "ipo"])
def test_tr_dpo_that_never_updates_is_its_base(base):
    given = pairs(seed=2)
    plain = objective(base, **{"tau" if base == "ipo" else "beta": 0.05})(given)
    close(objective("tr-dpo", base=base)(given).per_unit, plain.per_unit)


def test_tr_kto_learns_from_thumbs():
    assert get("tr-dpo")(base="kto").feedback is Binary
    assert get("tr-dpo")().feedback is Pair
    made = session("tr-dpo", WORLD.binary(), base="kto", steps=2)
    run(made)
    close(made.hooks.rows[0]["loss"], 0.5, 1e-12)  # 1 - sig(0), both classes


@pytest.mark.parametrize("options", [{"form": "soft", "tau": 3}, {"form": "hard", "alpha": 0.5}])
def test_tr_dpo_refuses_what_its_form_would_not_read(options):
    with pytest.raises(OptionError, match="has no place in form="):
        get("tr-dpo")(**options)


# sdpo


def test_sdpo_in_one_stage_is_dpo():
    one = session("sdpo", WORLD.pairs(), Quiet(), stages=1, cut="given", beta=0.5)
    plain = session("dpo", WORLD.pairs(), Quiet(), beta=0.5)
    run(one)
    run(plain)
    assert torch.equal(one.policy.tensors()["logits"], plain.policy.tensors()["logits"])


def test_sdpo_begins_each_stage_at_log_2_against_the_policy_that_the_last_one_left():
    made = session("sdpo", WORLD.pairs(400, seed=1), stages=3, beta=0.5, cut="random", steps=4)
    run(made)
    rows, path = made.hooks.rows, made.hooks.path
    first = {
        stage: next(i for i, r in enumerate(rows) if r["stage"] == stage) for stage in (0, 1, 2)
    }
    assert [rows[i]["loss"] for i in first.values()] == pytest.approx([math.log(2)] * 3, abs=1e-12)
    for stage, i in first.items():
        left = WORLD.start if stage == 0 else path[i - 1][0]
        inside = [reference for (_, reference), r in zip(path, rows) if r["stage"] == stage]
        assert all(torch.equal(reference, left) for reference in inside)
    assert len(rows) == 12


def test_sdpo_takes_easy_pairs_first_and_every_pair_once():
    records = [replace(p, weight=1.0) for p in WORLD.pairs()]
    made = session("sdpo", records, Quiet(), stages=4, steps=1)
    run(made)
    table = WORLD.start
    kept = [made.hooks.get(f"stage-{t}-records") for t in range(4)]
    gaps = [
        [float(table[r["prompt"], r["chosen"]] - table[r["prompt"], r["rejected"]]) for r in part]
        for part in kept
    ]
    assert all(min(a) >= max(b) for a, b in zip(gaps, gaps[1:]))
    assert sorted(r["key"] for part in kept for r in part) == sorted(r.key for r in records)
    accuracy = [np.mean([g > 0 for g in part]) for part in gaps]
    assert accuracy == sorted(accuracy, reverse=True)


def test_sdpo_over_named_sets_takes_the_one_first_that_the_start_ranks_best():
    easy, hard = [], []
    for p in WORLD.pairs():
        right = bool(WORLD.start[p.prompt, p.chosen] >= WORLD.start[p.prompt, p.rejected])
        (easy if right else hard).append(replace(p, meta={"set": "b" if right else "a"}))
    made = session("sdpo", [*hard, *easy], Quiet(), by="set", steps=1)
    run(made)
    assert {r["meta"]["set"] for r in made.hooks.get("stage-0-records")} == {"b"}
    given = session("sdpo", [*hard, *easy], Quiet(), by="set", cut="given", steps=1)
    run(given)
    assert {r["meta"]["set"] for r in given.hooks.get("stage-0-records")} == {"a"}


def test_sdpo_refuses_empty_parts_and_columns_that_are_not_there():
    with pytest.raises(DataError, match="1 examples cannot be cut into 2 parts"):
        run(session("sdpo", WORLD.pairs()[:1], Quiet()))
    with pytest.raises(DataError, match="has no 'set'"):
        run(session("sdpo", WORLD.pairs(), Quiet(), by="set"))
    with pytest.raises(OptionError, match="cut=random has no place beside by"):
        get("sdpo")(by="set", cut="random")


def test_two_stages_on_the_same_pairs_halve_beta_at_the_optimum():
    twice = [replace(p, key=f"{p.key}/{i}") for i in (1, 2) for p in WORLD.pairs()]
    settings = Settings(
        batch=len(twice), epochs=250.0, lr=0.1, betas=(0.9, 0.95), schedule="cosine", clip=None
    )
    made = session("sdpo", twice, Quiet(), settings=settings, cut="given", beta=1.0)
    run(made)
    assert WORLD.distance(made.policy, WORLD.regularised(0.5)) < 1e-4


# References by name


def test_a_model_is_a_reference_only_where_models_can_be_opened():
    made = session("modpo", WORLD.pairs(), Quiet(), policies="other", steps=1)
    with pytest.raises(NeedsError, match="cannot be 'model:other' here"):
        run(made)
    law = WORLD.regularised(0.3)
    opened = session("modpo", WORLD.pairs(), Quiet(), policies="other", steps=1)
    opened.opens = lambda name: TabularPolicy(law)
    run(opened)
    assert torch.equal(opened.cast.references["policy1"].tensors()["logits"], law)


def test_modpo_with_a_trained_policy_reaches_the_weighted_optimum():
    second = torch.randn(2, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    beta, w = 0.5, (0.6, 0.4)
    trained = (WORLD.start + second / beta).log_softmax(-1)
    settings = Settings(
        batch=99, epochs=300.0, lr=0.1, betas=(0.9, 0.95), schedule="cosine", clip=None
    )
    made = session(
        "modpo", WORLD.pairs(), Quiet(), settings=settings, w=w, beta=beta, policies="second"
    )
    made.opens = lambda name: TabularPolicy(trained)
    run(made)
    optimum = (WORLD.start + (w[0] * WORLD.reward + w[1] * second) / beta).log_softmax(-1)
    assert WORLD.distance(made.policy, optimum) < 1e-4


@pytest.mark.parametrize(
    ("id", "drawn"), [("sdpo", False), ("spo-sequential", False), ("sera", True)]
)
def test_sampling_options_are_refused_where_no_stage_samples(id, drawn):
    declared = get(id)
    given = {"method": id, "model": "m", "data": "d", "output": "o", "top_p": 0.5}
    config = configure(given, declared)
    if drawn:
        refuse_unused(config, declared, declared())
        return
    with pytest.raises(OptionError, match=r"top_p=0\.5 would have no effect"):
        refuse_unused(config, declared, declared())
