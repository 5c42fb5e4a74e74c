"""Methods that measure, in the exact worlds: every figure against numbers worked out by hand."""

import json
import math

import numpy as np
import pytest
import torch

from polyalign.errors import DataError, NeedsError, OptionError
from polyalign.evaluation.api import measure
from polyalign.evaluation.diagnosis import advise, turning_point
from polyalign.feedback.records import Demonstration, Pair, Prompt
from polyalign.methods import measurement
from polyalign.policies.tabular import TabularPolicy
from polyalign.worlds.bandit import Bandit

WORLD = Bandit.make(4, 6, seed=2)
TRAINED = WORLD.regularised(0.5)
GIVEN = [(0, 1, 2, 0.9), (1, 0, 5, 0.7), (2, 3, 4, 0.5), (3, 2, 0, 1.0), (3, 5, 1, 0.3)]
PAIRS = [
    Pair(key=f"{x}:{w}", prompt=x, chosen=w, rejected=other, fields={"a": a})
    for x, w, other, a in GIVEN
]
PI = TRAINED.numpy()
REF = WORLD.start.numpy()
ROWS = [(p.prompt, p.chosen, p.rejected) for p in PAIRS]
LP_W, LP_L = (np.array([PI[r[0], r[i]] for r in ROWS]) for i in (1, 2))
RF_W, RF_L = (np.array([REF[r[0], r[i]] for r in ROWS]) for i in (1, 2))


def made(name, records=PAIRS, *, reference=WORLD.start, hyper=None, **options):
    declared = measurement(name)
    given = declared.validate(hyper or {})
    found = measure(
        TabularPolicy(TRAINED),
        records,
        name,
        declared(**given),
        options=given,
        feedback=declared.feedback,
        reference=None if reference is None else TabularPolicy(reference),
        **options,
    )
    return json.loads(json.dumps(found, allow_nan=False))["with"][name]


def figure(found, name):
    return next(f for f in found["figures"] if f["measure"] == name)


def sorted_law(log_law, k):
    p = np.sort(np.exp(log_law), -1)[..., ::-1][..., :k]
    return p.sum(-1), -(p * np.log(p)).sum(-1)


# likelihood-overopt


def test_mass_and_entropy_of_given_answers_are_means_over_their_positions():
    found = made("likelihood-overopt", hyper={"k": 3, "positions": "given"})
    at = [p.prompt for p in PAIRS]  # one step each: the law at a prompt, whatever the answer
    for side, law in (("after", PI), ("before", REF)):
        mass, entropy = sorted_law(law[at], 3)
        spread = entropy / mass + np.log(mass)
        assert found[side]["mass"]["value"] == pytest.approx(mass.mean(), rel=1e-9)
        assert found[side]["entropy"]["value"] == pytest.approx(entropy.mean(), rel=1e-9)
        assert found[side]["spread"]["value"] == pytest.approx(spread.mean(), rel=1e-9)
        assert found[side]["positions"] == len(PAIRS)
    change = figure(found, "Mass of the 3 likeliest tokens on given answers")["change"]
    expected = (sorted_law(PI[at], 3)[0] - sorted_law(REF[at], 3)[0]).mean()
    assert change["value"] == pytest.approx(expected, rel=1e-9)
    assert figure(found, "Margin of log-likelihoods")["after"]["value"] == pytest.approx(
        (LP_W - LP_L).mean()
    )


def test_on_own_answers_each_law_is_read_where_it_drew_itself():
    prompts = [Prompt(key=str(x), prompt=x) for x in range(4)]
    found = made("likelihood-overopt", prompts, hyper={"k": 2}, samples=64)
    # 16 answers of one step to each of 4 prompts: the mean over positions is that over prompts.
    for side, law in (("after", PI), ("before", REF)):
        mass, entropy = sorted_law(law, 2)
        assert found[side]["mass"]["value"] == pytest.approx(mass.mean(), rel=1e-9)
        assert found[side]["entropy"]["value"] == pytest.approx(entropy.mean(), rel=1e-9)
        assert found[side]["positions"] == 64
    falls = [sorted_law(PI, 2)[i].mean() < sorted_law(REF, 2)[i].mean() for i in (0, 1)]
    assert found["both_fall"] == all(falls)


def test_a_judge_s_score_of_the_sampled_answers_stands_beside():
    judge = lambda prompt, completion: float(completion == 0)  # noqa: E731
    prompts = [Prompt(key=str(x), prompt=x) for x in range(4)]
    found = made("likelihood-overopt", prompts, hyper={"k": 2}, judge=judge, samples=8)
    assert 0 <= found["score"]["value"] <= 1
    assert found["score_before"]["n"] == 8


def test_what_cannot_be_looked_at_is_refused():
    with pytest.raises(OptionError, match="Use k from 1 to 6"):
        made("likelihood-overopt", hyper={"k": 7, "positions": "given"})
    with pytest.raises(OptionError, match="k=0 is not allowed"):
        made("likelihood-overopt", hyper={"k": 0})
    with pytest.raises(DataError, match="No answers were drawn"):
        made("likelihood-overopt", samples=0)
    with pytest.raises(DataError, match="no answer in the data"):
        made("likelihood-overopt", [Prompt(key="0", prompt=0)], hyper={"positions": "given"})
    shown = [Demonstration(key="0", prompt=0, completion=1)]
    assert made("likelihood-overopt", shown, hyper={"positions": "given", "k": 1})["k"] == 1


# preference-rankings


def test_ranking_and_idealised_accuracy_are_the_cards():
    found = made("preference-rankings", hyper={"betas": (0.2, 1.0, 5.0)}, beta=0.5)
    assert found["raw"]["accuracy"]["value"] == pytest.approx((LP_W >= LP_L).mean())
    assert found["raw"]["accuracy_reference"]["value"] == pytest.approx((RF_W >= RF_L).mean())
    for beta, share in found["raw"]["idealised"].items():
        ratio = np.exp(RF_W - RF_L) * (1 / 0.001) ** (1 / float(beta))
        assert share == pytest.approx((ratio > 1).mean())
    middle = np.median(list(found["raw"]["idealised"].values()))
    assert found["raw"]["alignment_gap"] == pytest.approx(middle - (LP_W >= LP_L).mean())
    wrong = RF_W < RF_L
    assert 0 < wrong.sum() < len(PAIRS)
    assert found["raw"]["flipped"] == pytest.approx((LP_W >= LP_L)[wrong].mean())
    # One step each, so a mean log-probability is the sum.
    assert found["normalised"]["accuracy"] == found["raw"]["accuracy"]


def test_difficulty_losses_and_what_they_must_reach_are_the_cards():
    beta = 0.5
    found = made("preference-rankings", beta=beta)
    c, h = RF_L - RF_W, (LP_W - RF_W) - (LP_L - RF_L)
    table = {row["key"]: row for row in found["pairs_table"]}
    for i, pair in enumerate(PAIRS):
        row = table[pair.key]
        assert row["difficulty"] == pytest.approx(c[i])
        assert row["loss"] == pytest.approx(math.log1p(math.exp(-beta * h[i])))
        assert row["loss_to_reach"] == pytest.approx(math.log1p(math.exp(-beta * c[i])))
    assert found["difficulty"]["wrong"] == pytest.approx((c > 0).mean())
    assert found["difficulty"]["reached"] == found["raw"]["accuracy"]["value"]
    assert found["implicit_accuracy"]["value"] == pytest.approx((h > 0).mean())


def test_shares_of_raters_come_from_their_column():
    a = np.array([p.fields["a"] for p in PAIRS])
    found = made("preference-rankings", hyper={"agreement": "a", "betas": "0.5"})
    ratio = np.exp(RF_W - RF_L) * (a / np.maximum(1 - a, 0.001)) ** 2.0
    assert found["raw"]["idealised"] == {"0.5": pytest.approx((ratio > 1).mean())}
    near = np.abs(np.exp(LP_W) - np.exp(LP_L)) < 0.01
    right = np.where(a == 0.5, near, np.where(a < 0.5, LP_W < LP_L, LP_W >= LP_L))
    assert found["raw"]["accuracy"]["value"] == pytest.approx(right.mean())
    with pytest.raises(DataError, match="has no number 'b'"):
        made("preference-rankings", hyper={"agreement": "b"})


def test_dpo_s_optimum_on_rater_proportions_has_the_idealised_accuracy():
    # pi* / pi*' = ref / ref' (a / (1 - a))^(1/beta) holds exactly for Bradley-Terry proportions.
    pairs = []
    for x in range(WORLD.prompts):
        for w in range(6):
            for l in range(6):  # noqa: E741
                a = float(WORLD.prefer[x, w, l])
                if a > 0.5:
                    key = f"{x}:{w}>{l}"
                    pairs.append(Pair(key=key, prompt=x, chosen=w, rejected=l, fields={"a": a}))
    found = made(
        "preference-rankings", pairs, hyper={"agreement": "a", "betas": 0.5, "unanimous": 1e-6}
    )
    assert found["raw"]["idealised"]["0.5"] == pytest.approx(found["raw"]["accuracy"]["value"])


def test_rankings_need_pairs_and_a_reference():
    with pytest.raises(NeedsError, match="with a reference, and there is none"):
        made("preference-rankings", reference=None)
    with pytest.raises(DataError, match="reads pairs"):
        made("preference-rankings", [Prompt(key="0", prompt=0)])


# reference-policies


def test_each_reference_has_its_loss_over_betas_and_its_distance_to_the_start():
    betas = (0.1, 1.0, 10.0)
    found = made("reference-policies", hyper={"betas": betas}, beta=0.3, samples=16)
    rows = {row["reference"]: row for row in found["references"]}
    assert set(rows) == {"start", "none (posterior)"}  # a world's prompt cannot be left out
    for name, q_w, q_l in (("start", RF_W, RF_L), ("none (posterior)", 0 * RF_W, 0 * RF_L)):
        h = (LP_W - q_w) - (LP_L - q_l)
        for beta in betas:
            expected = np.log1p(np.exp(-beta * h)).mean()
            assert rows[name]["loss"][f"{beta:g}"] == pytest.approx(expected)
        assert rows[name]["accuracy"]["value"] == pytest.approx((h > 0).mean())
        best = min(betas, key=lambda b: np.log1p(np.exp(-b * h)).mean())
        assert rows[name]["best_beta"] == best
        off = np.abs(q_w - RF_W) + np.abs(q_l - RF_L)
        assert rows[name]["distance_to_start"] == pytest.approx(off.sum() / (2 * len(PAIRS)))
    assert rows["none (posterior)"]["kl"] is None
    assert rows["start"]["kl"]["n"] == 16
    (strength,) = found["strengths"]
    assert strength["beta"] == 0.3
    assert strength["accuracy"]["value"] == pytest.approx((LP_W > LP_L).mean())


def test_a_uniform_reference_is_none():
    uniform = torch.zeros_like(WORLD.start).log_softmax(-1)
    found = made("reference-policies", reference=uniform, samples=0)
    rows = {row["reference"]: row for row in found["references"]}
    for beta, loss in rows["start"]["loss"].items():
        assert rows["none (posterior)"]["loss"][beta] == pytest.approx(loss)


@pytest.mark.parametrize("betas", ["0", "0.1,-1", "much"])
def test_betas_that_are_not_above_zero_are_refused(betas):
    with pytest.raises(OptionError, match="betas="):
        made("reference-policies", hyper={"betas": betas})


# The same during training: the first evaluation after which both indicators fell.


def curves(masses, entropies, margins):
    return [
        {"step": 10 * i, "split": "eval", "eval_top_mass": m, "eval_top_entropy": e,
         "eval_rewards/margins": r}
        for i, (m, e, r) in enumerate(zip(masses, entropies, margins, strict=True))
    ]  # fmt: skip


GROWS = [0.0, 0.1, 0.2, 0.3, 0.4]


def test_two_falls_of_both_with_a_growing_margin_are_a_turning_point():
    rows = curves([0.80, 0.82, 0.79, 0.76, 0.75], [1.0, 0.95, 0.93, 0.90, 0.89], GROWS)
    assert turning_point(rows) == 10
    assert turning_point(rows, patience=3) == 10
    assert turning_point(rows, patience=4) is None
    told = [a for a in advise(rows) if a.code == "overoptimisation"]
    assert len(told) == 1
    assert told[0].step == 10
    assert "Since step 10" in told[0].text


@pytest.mark.parametrize(
    ("masses", "entropies", "margins"),
    [
        ([0.80, 0.82, 0.84, 0.86, 0.88], [1.0, 0.9, 0.8, 0.7, 0.6], GROWS),  # sharpening
        ([0.80, 0.78, 0.76, 0.74, 0.72], [1.0, 1.1, 1.2, 1.3, 1.4], GROWS),  # entropy rises
        ([0.80, 0.78, 0.76, 0.74, 0.72], [1.0, 0.9, 0.8, 0.7, 0.6], GROWS[::-1]),  # margin falls
        ([0.80, 0.78, 0.79, 0.77, 0.78], [1.0, 0.9, 0.95, 0.9, 0.95], GROWS),  # never twice
    ],
)
def test_no_other_course_is_one(masses, entropies, margins):
    rows = curves(masses, entropies, margins)
    assert turning_point(rows) is None
    assert not [a for a in advise(rows) if a.code == "overoptimisation"]
