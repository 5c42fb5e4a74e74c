# ruff: noqa: E501  (a case is one line, however long)
"""The table of refusals for the methods from pairs that are DPO's nearer relatives, and measures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from polyalign import objective
from polyalign.errors import OptionError
from polyalign.methods import measurement
from tests.methods.refusals import (
    FREE,
    INF,
    NAN,
    PLAIN,
    SIZE,
    STEP_PAIRS,
    SUMS,
    WORLD,
    Case,
    first,
    lps,
    trained,
)

THREE = {
    f"{n}_{s}": SUMS[f"{n}_{r}"]
    for n in ("lp", "rf")
    for s, r in (("s", "w"), ("t", "w"), ("l", "l"))
}

GOOD: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("discopop", "dpop", "rpo", "f-dpo"), PLAIN),
    **dict.fromkeys(("ln-dpo", "sigmoid-norm", "mipo", "r-dpo"), SUMS),
    **dict.fromkeys(("cpo", "alphapo", "daa-blur"), FREE),
    "ld-dpo": STEP_PAIRS,
    "triple-po": {k: SUMS[k] for k in ("lp_w", "lp_l")} | lps("lp_g"),
    "wrpo": THREE,
}  # fmt: skip
"""Arrays with which a method's loss is well defined."""

REFERENCE_FREE = {"cpo", "alphapo", "daa-blur", "triple-po"}
SUMMED = tuple(id for id in GOOD if id not in ("ld-dpo", "wrpo"))


def but(id: str, **changes: Any) -> dict[str, Any]:
    return {k: v for k, v in (GOOD[id] | changes).items() if v is not None}


SHARED = [
    case
    for id in SUMMED
    for case in (
        Case(id, "beta of 0", "beta=0 is not allowed", hyper={"beta": 0}),
        Case(id, "lp_w not a number", "'lp_w' is not finite", arrays=but(id, lp_w=first(SUMS["lp_w"], NAN))),
        Case(id, "lp_l infinite", "'lp_l' is not finite", arrays=but(id, lp_l=first(SUMS["lp_l"], -INF))),
        Case(id, "sides of two axes", r"'lp_w' has shape \[5, 2\]", arrays=but(id, lp_w=np.ones((5, 2)))),
        Case(id, "an empty completion", "Example 0 has length 0", arrays=but(id, n_w=[0, 1, 1, 1, 1], n_l=[1] * 5)),
        Case(id, "no log-probabilities", "needs the array 'lp_l'", arrays=but(id, lp_l=None)),
    )
] + [
    case
    for id in SUMMED
    if id not in REFERENCE_FREE
    for case in (
        Case(id, "no reference", "needs the array 'rf_w'", arrays=but(id, rf_w=None)),
        Case(id, "a reference of another size", "'rf_w' has shape", arrays=but(id, rf_w=[-1.0])),
        Case(id, "a reference that is no number", "'rf_l' is not finite", arrays=but(id, rf_l=first(SUMS["rf_l"], INF))),
    )
] + [
    Case(id, "sums without lengths", "needs? lengths", arrays={k: v for k, v in GOOD[id].items() if k[0] != "n"})
    for id in ("ln-dpo", "sigmoid-norm", "mipo", "r-dpo", "alphapo", "daa-blur")
] + [
    Case(id, "label smoothing of a half", "label_smoothing=0.5 is not allowed", hyper={"label_smoothing": 0.5})
    for id in ("cpo", "wrpo", "alphapo")
]  # fmt: skip

OWN = [
    Case("discopop", "tau of 0", "tau=0 is not allowed", hyper={"tau": 0}),
    Case("dpop", "negative lam", "lam=-1 is not allowed", hyper={"lam": -1}),
    Case("rpo", "negative eta", "eta=-1 is not allowed", hyper={"eta": -1}),
    Case("rpo", "no gold answer", "needs the array 'lp_g'", hyper={"baseline": "gold"}, arrays=PLAIN),
    Case("r-dpo", "a length that is paid for", "pays for length", hyper={"alpha": -0.1}, warns=True),
    Case("r-dpo", "negative lengths", "has length -1", arrays=but("r-dpo", n_w=[-1, 1, 1, 1, 1])),
    Case("ld-dpo", "beta of 0", "beta=0 is not allowed", hyper={"beta": 0}),
    Case("ld-dpo", "alpha above 1", "alpha=1.5 is not allowed", hyper={"alpha": 1.5}),
    Case("ld-dpo", "negative alpha", "alpha=-0.1 is not allowed", hyper={"alpha": -0.1}),
    Case("ld-dpo", "sums alone", "ld-dpo (looks at single steps|depends on the completions' lengths)", arrays=SUMS),
    Case("ld-dpo", "a token's logp infinite", "'logp_l' is not finite", arrays=but("ld-dpo", logp_l=first(STEP_PAIRS["logp_l"], -INF))),
    Case("ld-dpo", "no reference", "needs the array 'ref_w'", arrays=but("ld-dpo", ref_w=None)),
    Case("ld-dpo", "a mask of another shape", "'mask_w' has shape", arrays=but("ld-dpo", mask_w=np.ones((2, 3)))),
    Case("f-dpo", "alpha of 0", "alpha=0 is not allowed", hyper={"divergence": "alpha", "alpha": 0}),
    Case("f-dpo", "alpha of 1", "alpha=1 is not allowed", hyper={"divergence": "alpha", "alpha": 1}),
    Case("f-dpo", "an unknown divergence", "divergence='chi2' is not allowed", hyper={"divergence": "chi2"}),
    Case("f-dpo", "alpha of another divergence", "alpha has no place in divergence=js", hyper={"alpha": 0.3}),
    Case("alphapo", "an alpha that is no number", "alpha=nan is not allowed", hyper={"alpha": NAN}),
    Case("alphapo", "an infinite alpha", "alpha=inf is not allowed", hyper={"alpha": INF}),
    Case("daa-blur", "an average of 0", "is not below 0, so it has no odds", arrays=but("daa-blur", lp_w=first(SUMS["lp_w"], 0.0))),
    Case("cpo", "negative alpha", "alpha=-1 is not allowed", hyper={"alpha": -1}),
    Case("cpo", "smoothing that nothing reads", "label_smoothing has no place in link=hinge", hyper={"link": "hinge", "label_smoothing": 0.1}),
    Case("triple-po", "negative alpha", "alpha=-1 is not allowed", hyper={"alpha": -1}),
    Case("triple-po", "no gold answer", "needs the array 'lp_g'", arrays=but("triple-po", lp_g=None)),
    Case("triple-po", "records without a gold answer", "gold", run=trained("triple-po", WORLD.pairs())),
    Case("triple-po", "gamma that nothing reads", "gamma has no place in loss=tpo", hyper={"gamma": 0.2}),
    Case("wrpo", "beta of 0", "beta=0 is not allowed", hyper={"beta": 0}),
    Case("wrpo", "alpha above 1", "alpha=1.5 is not allowed", hyper={"alpha": 1.5}),
    Case("wrpo", "one winner", "needs the array 'lp_s'", arrays=but("wrpo", lp_s=None)),
    Case("wrpo", "no reference", "needs the array 'rf_t'", arrays=but("wrpo", rf_t=None)),
    Case("wrpo", "records of one winner", "source_chosen", run=trained("wrpo", WORLD.pairs())),
    Case("bco", "matching of pairs", "matching has no place in form=pair", hyper={"form": "pair", "matching": True}),
    Case("bco", "thumbs of one class", "only one side is learnt", warns=True, arrays=lps("lp", "rf") | {"label": [0] * SIZE}),
    Case("iopo", "exo without an eps", "link=exo needs label_smoothing", hyper={"link": "exo"}),
    Case("brain", "negative g", "g=-1 is not allowed", hyper={"form": "gdc++", "g": -1}),
]  # fmt: skip

CASES = [*SHARED, *OWN]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.id}: {c.what}")
def test_what_a_card_refuses_is_refused_and_what_it_warns_of_is_warned_of(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("id", GOOD)
def test_what_the_cases_change_was_right_before(id: str) -> None:
    assert np.isfinite(objective(id)(GOOD[id]).value)


@pytest.mark.parametrize(
    ("id", "hyper"),
    [
        ("likelihood-overopt", {"k": 0}),
        ("likelihood-overopt", {"patience": 0}),
        ("preference-rankings", {"betas": "0.1,0"}),
        ("preference-rankings", {"unanimous": 0}),
        ("preference-rankings", {"tie": 0}),
        ("reference-policies", {"betas": "-1"}),
    ],
)
def test_a_measurement_refuses_options_outside_their_bounds(id: str, hyper: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="is not allowed"):
        measurement(id)(**hyper)


def test_triples_that_miss_only_their_gold_answer_train_once_it_is_there() -> None:
    whole = [replace(p, others={"gold": p.chosen}) for p in WORLD.pairs()]
    trained("triple-po", whole)()
