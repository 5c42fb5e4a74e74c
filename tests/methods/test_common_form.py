# ruff: noqa: E501  (a form is one line, however long)
"""The survey's one form of a pairwise loss, evaluated in numpy, against the methods it covers.

``z = a (L_w - L_l) - b (R_w - R_l) - m``; ``loss = w [p link(z) + q link(-z)] + extra``: L and R the
policy's and the reference's log-probabilities, summed or averaged over tokens. p and q are real (q
may be negative). Source: Xiao et al. 2024, arXiv 2410.15595, as the card of dpo-survey puts it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

from polyalign import objective
from polyalign.methods import get
from polyalign.methods.taxonomy import describe
from tests.methods.by_hand import neg_logsig, pairs, sig

A = pairs(seed=12, size=7)
SIZE = len(A["lp_w"])
DRAW = np.random.default_rng(3)
SCORES = {"score_chosen": DRAW.normal(size=SIZE), "score_rejected": DRAW.normal(size=SIZE)}
STRENGTH = DRAW.uniform(0.1, 0.9, SIZE)
M = {"m_w": DRAW.normal(size=SIZE), "m_l": DRAW.normal(size=SIZE)}
LONGER = (A["n_w"] - A["n_l"]).astype(float)
REF_GAP = A["rf_w"] / A["n_w"] - A["rf_l"] / A["n_l"]
NLL = -A["lp_w"]

Numbers = float | np.ndarray

LINKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "logistic": neg_logsig,
    "hinge": lambda z: np.maximum(0.0, 1.0 - z),
    "squared": lambda z: z**2,
    "exponential": lambda z: np.exp(-z),
}


@dataclass(frozen=True)
class Form:
    """A method as a choice of the form's parts, at some options and further arrays."""

    id: str
    hyper: dict[str, Any]
    functional: Literal["sum", "mean"] = "sum"
    a: float = 1.0
    b: float = 0.0
    m: Numbers = 0.0
    w: Numbers = 1.0
    p: Numbers = 1.0
    q: Numbers = 0.0
    link: str = "logistic"
    extra: Numbers = 0.0
    arrays: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> np.ndarray:
        n_w, n_l = (A["n_w"], A["n_l"]) if self.functional == "mean" else (1.0, 1.0)
        policy = A["lp_w"] / n_w - A["lp_l"] / n_l
        reference = A["rf_w"] / n_w - A["rf_l"] / n_l
        z = self.a * policy - self.b * reference - self.m
        link = LINKS[self.link]
        return self.w * (self.p * link(z) + self.q * link(-z)) + self.extra


def ratio(beta: float) -> dict[str, float]:
    """Log-ratios to the reference at a strength beta."""
    return {"a": beta, "b": beta}


EPS = 0.2
SOFT = sig(2.0 * (SCORES["score_chosen"] - SCORES["score_rejected"]))

FORMS = [
    Form("dpo", {"beta": 0.3}, **ratio(0.3)),
    Form("dpo", {"beta": 0.3, "loss": "cdpo", "label_smoothing": EPS}, **ratio(0.3), p=1 - EPS, q=EPS),
    Form("dpo", {"beta": 0.3, "loss": "robust", "label_smoothing": EPS}, **ratio(0.3), p=(1 - EPS) / (1 - 2 * EPS), q=-EPS / (1 - 2 * EPS)),
    Form("robust-dpo", {"beta": 0.3, "eps": EPS}, **ratio(0.3), p=(1 - EPS) / (1 - 2 * EPS), q=-EPS / (1 - 2 * EPS)),
    Form("robust-dpo", {"beta": 0.3, "eps": 0.0}, **ratio(0.3)),
    Form("mmpo", {"beta": 0.3, "gamma": 2.0}, **ratio(0.3), p=SOFT, q=1 - SOFT, arrays=SCORES),
    Form("osp", {"beta": 0.3}, **ratio(0.3), p=STRENGTH, q=1 - STRENGTH, arrays={"strength": STRENGTH}),
    Form("h-dpo", {"alpha": 0.7, "beta": 0.3}, a=0.21, b=0.3),
    Form("h-dpo", {"alpha": 1.0, "beta": 0.3}, **ratio(0.3)),
    Form("ipo", {"tau": 0.4}, functional="mean", **ratio(1.0), m=1 / 0.8, link="squared"),
    Form("ipo", {"tau": 0.4, "length_average": False}, **ratio(1.0), m=1 / 0.8, link="squared"),
    Form("slic", {"delta": 1.0, "lam": 0.0}, link="hinge"),
    Form("slic", {"delta": 1.0, "lam": 0.3}, link="hinge", extra=0.3 * NLL),
    Form("slic", {"form": "hinge-norm", "beta": 0.3}, **ratio(0.3), link="hinge"),
    Form("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.4}, functional="mean", a=2.0, m=0.8),
    Form("simpo", {"beta": 2.0, "gamma_beta_ratio": 0.4, "link": "hinge"}, functional="mean", a=2.0, m=0.8, link="hinge"),
    Form("ln-dpo", {"beta": 5.0}, functional="mean", **ratio(5.0)),
    Form("sigmoid-norm", {"beta": 5.0}, functional="mean", **ratio(5.0)),
    Form("r-dpo", {"beta": 0.3, "alpha": 0.05}, **ratio(0.3), m=-0.05 * LONGER),
    Form("mipo", {"beta": 3.0}, functional="mean", a=3.0, m=3.0 * np.logaddexp(0.0, REF_GAP)),
    Form("dpop", {"beta": 0.3, "lam": 2.0}, **ratio(0.3), m=0.3 * 2.0 * np.maximum(0.0, A["rf_w"] - A["lp_w"])),
    Form("modpo", {"w": (0.4, 0.6), "beta": 0.3}, **ratio(0.75), m=1.5 * (M["m_w"] - M["m_l"]), arrays=M),
    Form("modpo", {"w": (0.4, 0.6), "beta": 0.3, "link": "hinge"}, **ratio(0.75), m=1.5 * (M["m_w"] - M["m_l"]), arrays=M, link="hinge"),
    Form("tr-dpo", {"beta": 0.3}, **ratio(0.3)),
    Form("sdpo", {"beta": 0.3}, **ratio(0.3)),
    Form("spo-sequential", {"beta": 0.3}, **ratio(0.3)),
]  # fmt: skip


def deviation(form: Form) -> float:
    """Largest distance of the form from the method's own loss, over the pairs."""
    free = describe(get(form.id))["reference"] == ["none"] and form.b == 0
    given = {k: v for k, v in A.items() if not (free and k[:2] == "rf")}
    found = objective(form.id, **form.hyper)(given | form.arrays)
    return float(np.abs(found.per_unit - form()).max())


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.id} {f.hyper}")
def test_a_method_is_a_configuration_of_the_common_form(form: Form) -> None:
    assert deviation(form) < 1e-8
    assert form.a >= 0
    assert form.b >= 0
    assert np.all(np.asarray(form.w) >= 0)


def test_the_form_covers_at_least_fifteen_methods() -> None:
    assert len({form.id for form in FORMS}) >= 15


def test_without_a_reference_the_posterior_is_dpo_at_zero_and_with_a_prior_dpo_at_its_values() -> (
    None
):
    zero = {k: A[k] for k in ("lp_w", "lp_l")} | {"rf_w": 0 * A["rf_w"], "rf_l": 0 * A["rf_l"]}
    posterior = Form("dpo", {"beta": 0.3}, a=0.3)
    np.testing.assert_allclose(objective("dpo", beta=0.3)(zero).per_unit, posterior(), atol=1e-10)
