"""TRL's losses that are methods of their own here: the imported method computes TRL's numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from polyalign import objective
from polyalign.methods.trl import import_config
from tests.methods.by_hand import close, neg_logsig, pairs, sig

A = pairs(3, 6)
CHOSEN, REJECTED = A["lp_w"] - A["rf_w"], A["lp_l"] - A["rf_l"]
BETA = 0.3


def discopop(tau):
    z = BETA * (CHOSEN - REJECTED)
    mixed = sig(z / tau)
    return neg_logsig(z) * (1 - mixed) + np.exp(-z) * mixed


def exo(eps):
    z = BETA * (CHOSEN - REJECTED)
    chosen = sig(z) * (-neg_logsig(z) - np.log1p(-eps))
    return chosen + sig(-z) * (-neg_logsig(-z) - np.log(eps))


TRL = {
    "apo_zero": ({}, sig(-BETA * CHOSEN) + sig(BETA * REJECTED)),
    "apo_down": ({}, sig(BETA * CHOSEN) + sig(-BETA * (CHOSEN - REJECTED))),
    "sigmoid_norm": ({}, neg_logsig(BETA * (CHOSEN / A["n_w"] - REJECTED / A["n_l"]))),
    "discopop": ({"discopop_tau": 0.2}, discopop(0.2)),
    "exo_pair": ({"label_smoothing": 0.1}, exo(0.1)),
    "nca_pair": (
        {},
        neg_logsig(BETA * CHOSEN)
        + 0.5 * neg_logsig(-BETA * CHOSEN)
        + 0.5 * neg_logsig(-BETA * REJECTED),
    ),
    "bco_pair": ({}, neg_logsig(BETA * CHOSEN) + neg_logsig(-BETA * REJECTED)),
}


@pytest.mark.parametrize("loss", TRL)
def test_an_imported_loss_is_the_trainers(loss):
    flags, expected = TRL[loss]
    got = import_config({"loss_type": loss, "beta": BETA, **flags}, trainer="dpo")
    arrays = A if loss == "sigmoid_norm" else {k: v for k, v in A.items() if k[0] != "n"}
    found = objective(got.method, **got.options["hyper"])(arrays)
    close(found.per_unit, expected)
    assert {note.flag for note in got.notes} >= {"loss_type", "beta", *flags}


def test_exo_without_smoothing_takes_the_value_that_the_trainer_takes():
    assert import_config({"loss_type": "exo_pair"}, trainer="dpo").options["hyper"]["eps"] == 1e-3


def test_unpaired_apo_zero_is_kto_without_a_zero_point():
    got = import_config({"loss_type": "apo_zero_unpaired", "beta": BETA}, trainer="kto")
    assert got.method == "kto"
    assert got.options["hyper"]["zero_point"] == "none"


# Flags that make other methods of the dpo trainer's sigmoid loss.


def divergent(score):
    return neg_logsig(BETA * (score(CHOSEN) - score(REJECTED)))


DIVERGENCES = {
    ("forward_kl", None): lambda h: 1 - np.exp(-h),
    ("js_divergence", None): lambda h: np.log(2) - neg_logsig(h),
    ("alpha_divergence", 0.3): lambda h: (np.exp((0.3 - 1) * h) - 1) / (0.3 - 1),
    ("alpha_divergence", 0.0): lambda h: (np.exp(-h) - 1) / -1,
}


@pytest.mark.parametrize(("name", "coefficient"), DIVERGENCES)
def test_an_imported_divergence_is_the_trainers(name, coefficient):
    flags = {"f_divergence_type": name, "beta": BETA}
    flags |= {} if coefficient is None else {"f_alpha_divergence_coef": coefficient}
    got = import_config(flags, trainer="dpo")
    plain = {k: v for k, v in A.items() if k[0] != "n"}
    found = objective(got.method, **got.options["hyper"])(plain)
    close(found.per_unit, divergent(DIVERGENCES[name, coefficient]))


DRAW = np.random.default_rng(4)
B, STEPS, V = 3, 4, 5
MASK = {"w": np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]),
        "l": np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]])}  # fmt: skip
LAWS = {
    name: value
    for s in "wl"
    for name, value in {
        f"logits_{s}": DRAW.normal(0, 1, (B, STEPS, V)),
        f"ref_logits_{s}": DRAW.normal(0, 1, (B, STEPS, V)),
        f"tokens_{s}": DRAW.integers(0, V, (B, STEPS)),
        f"mask_{s}": MASK[s],
    }.items()
}


for side in "wl":  # answers that the policy itself would give weigh more than one
    LAWS[f"tokens_{side}"][0] = LAWS[f"logits_{side}"][0].argmax(-1)


def log_softmax(x):
    return x - np.logaddexp.reduce(x, -1, keepdims=True)


def by_token(side):
    """Log-probabilities of the policy and of the reference at each token, 0 where masked."""
    tokens = LAWS[f"tokens_{side}"][..., None]
    both = (log_softmax(LAWS[f"{n}_{side}"]) for n in ("logits", "ref_logits"))
    return [np.take_along_axis(law, tokens, -1)[..., 0] * MASK[side] for law in both]


def test_imported_ld_alpha_discounts_the_tail_as_the_trainer_does():
    got = import_config({"ld_alpha": 0.4, "beta": BETA}, trainer="dpo")
    shared = np.minimum(MASK["w"].sum(1), MASK["l"].sum(1))[:, None]
    h = {}
    for s in "wl":
        policy, reference = by_token(s)
        kept = np.where(MASK[s].cumsum(1) > shared, 0.4, 1.0)
        h[s] = ((policy - reference) * kept).sum(1)
    found = objective(got.method, **got.options["hyper"])(LAWS)
    close(found.per_unit, neg_logsig(BETA * (h["w"] - h["l"])))


def test_imported_weighting_is_the_trainers_uncut_weight():
    got = import_config({"use_weighting": True, "beta": BETA}, trainer="dpo")
    h, weight = {}, np.ones(B)
    for s in "wl":
        policy, reference = by_token(s)
        h[s] = (policy - reference).sum(1)
        collision = np.log((np.exp(log_softmax(LAWS[f"logits_{s}"])) ** 2).sum(-1))
        weight = weight * np.exp(((policy - collision) * MASK[s]).sum(1) / MASK[s].sum(1))
    assert weight.max() > 1  # or the bound would not show
    found = objective(got.method, **got.options["hyper"])(LAWS)
    close(found.per_unit, weight * neg_logsig(BETA * (h["w"] - h["l"])))


@pytest.mark.parametrize(
    "flags",
    [{"rpo_alpha": 0.7}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}],
)
def test_imported_likelihood_beside_dpo_is_the_mean_over_all_chosen_tokens(flags):
    got = import_config(flags | {"beta": BETA}, trainer="dpo")
    found = objective(got.method, **got.options["hyper"])(A)
    nll = -A["lp_w"].sum() / A["n_w"].sum()
    close(found.value, neg_logsig(BETA * (CHOSEN - REJECTED)).mean() + 0.7 * nll)


def test_an_imported_uniform_reference_leaves_the_policys_gap():
    got = import_config({"reference_free": True, "beta": BETA}, trainer="dpo")
    found = objective(got.method, **got.options["hyper"])(lp_w=A["lp_w"], lp_l=A["lp_l"])
    close(found.per_unit, neg_logsig(BETA * (A["lp_w"] - A["lp_l"])))


# Other trainers.

FREE = {k: A[k] for k in ("lp_w", "lp_l", "n_w", "n_l")}
NLL = -A["lp_w"].sum() / A["n_w"].sum()


@pytest.mark.parametrize(
    ("flags", "weight"),
    [
        ({"loss_type": "sigmoid", "label_smoothing": 0.2, "cpo_alpha": 0.5}, 0.5),
        ({"loss_type": "hinge", "cpo_alpha": 1.0}, 1.0),
        ({"loss_type": "ipo", "cpo_alpha": 0.0}, 0.0),
        ({"loss_type": "simpo", "simpo_gamma": 0.4, "cpo_alpha": 0.5}, 0.5),
        ({"loss_type": "simpo", "alpha": 0.3, "label_smoothing": 0.1, "cpo_alpha": 0.5}, 0.5),
        ({"loss_type": "alphapo", "alpha": -0.5, "simpo_gamma": 0.1, "cpo_alpha": 0.5}, 0.0),
    ],
)
def test_imported_losses_of_the_cpo_trainer_are_what_its_own_function_gives(flags, weight):
    trl = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    got = import_config(flags | {"beta": BETA}, trainer="cpo")
    trainer = SimpleNamespace(
        beta=BETA,
        alpha=flags.get("alpha", 0.0),
        loss_type=flags["loss_type"].replace("alphapo", "simpo"),
        simpo_gamma=flags.get("simpo_gamma", 0.5),
        label_smoothing=flags.get("label_smoothing", 0.0),
        accelerator=SimpleNamespace(device="cpu"),
    )
    mean = trainer.loss_type in ("ipo", "simpo")
    sides = [torch.tensor(A[f"lp_{s}"] / (A[f"n_{s}"] if mean else 1.0)) for s in "wl"]
    losses = trl.CPOTrainer.cpo_loss(trainer, *sides)[0].numpy()
    found = objective(got.method, **got.options["hyper"])(FREE)
    close(found.value, losses.mean() + weight * NLL)


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "tpo-l"])
def test_imported_losses_of_the_tpo_trainer_are_its_formulas(loss):
    flags = {"loss_type": loss, "beta": BETA, "tpo_alpha": 0.5, "tpo_l_gamma": 0.2}
    got = import_config(flags, trainer="tpo")
    n = (A["n_w"], A["n_l"]) if loss == "tpo-l" else (1.0, 1.0)
    z = BETA * (A["lp_w"] / n[0] - A["lp_l"] / n[1]) - (0.2 if loss == "tpo-l" else 0.0)
    value = np.maximum(0, 1 - z) if loss == "hinge" else neg_logsig(z)
    gold = {"lp_g": A["rf_w"], "n_g": A["n_w"]}
    found = objective(got.method, **got.options["hyper"])(FREE | gold)
    close(found.value, value.mean() - 0.5 * A["rf_w"].sum() / A["n_w"].sum())


def test_the_imported_bco_trainers_shift_is_the_mean_of_all_rewards_seen():
    got = import_config({"beta": BETA}, trainer="bco")
    h, label = np.concatenate([CHOSEN, REJECTED]), np.repeat([1, 0], len(CHOSEN))
    delta = BETA * h.mean()
    expected = np.where(label == 1, neg_logsig(BETA * h - delta), neg_logsig(delta - BETA * h))
    found = objective(got.method, **got.options["hyper"])(lp=h, rf=np.zeros_like(h), label=label)
    close(found.per_unit, expected)
