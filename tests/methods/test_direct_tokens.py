"""sampo and bmc against their cards, worked out by hand in float64."""

from difflib import SequenceMatcher

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyalign import objective
from polyalign.errors import NumericsError, OptionError
from polyalign.feedback.draws import draw
from polyalign.methods import get
from polyalign.objectives.token_functionals import differing
from polyalign.types import Batch, Rows, Scores, needs
from tests.methods.by_hand import close, neg_logsig, sig

SIZE, T = 6, 8
BETA = 0.3


def steps(seed=0, lengths=None):
    """Log-probabilities by step of pairs of unequal lengths, with random numbers and tokens."""
    rng = np.random.default_rng(seed)
    out = {}
    for i, s in enumerate("wl"):
        n = rng.integers(1, T + 1, SIZE) if lengths is None else np.asarray(lengths[i])
        out[f"mask_{s}"] = np.arange(T) < n[:, None]
        out[f"logp_{s}"] = -rng.uniform(0.05, 3, (SIZE, T))
        out[f"ref_{s}"] = -rng.uniform(0.05, 3, (SIZE, T))
        out[f"u_{s}"] = rng.uniform(0, 1, (SIZE, T))
        out[f"v_{s}"] = rng.uniform(0, 1, (SIZE, T))
        out[f"tokens_{s}"] = rng.integers(0, 4, (SIZE, T))
        out[f"stop_word_{s}"] = rng.integers(0, 2, (SIZE, T))
    return out


def only(a, *names):
    return {f"{n}_{s}": a[f"{n}_{s}"] for n in names for s in "wl"}


def kept(u, n, count, last=False):
    """The ``count`` of the first ``n`` steps with the smallest numbers, by sorting."""
    places = sorted(range(n), key=lambda t: (t != n - 1 if last else 0, u[t]))[:count]
    return np.isin(np.arange(T), places)


def subsets(a, name="u", last=False):
    out = {}
    for s in "wl":
        n = {x: a[f"mask_{x}"].sum(-1) for x in "wl"}
        count = np.minimum(n["w"], n["l"])
        out[s] = np.stack([kept(a[f"{name}_{s}"][i], n[s][i], count[i], last) for i in range(SIZE)])
    return out


@pytest.mark.parametrize("keep_eos", [False, True])
def test_sampo_loss_and_gradient_are_the_cards_over_the_kept_tokens(keep_eos):
    a = steps()
    s = subsets(a, last=keep_eos)
    h = {x: ((a[f"logp_{x}"] - a[f"ref_{x}"]) * s[x]).sum(-1) for x in "wl"}
    z = BETA * (h["w"] - h["l"])
    result = objective("sampo", beta=BETA, keep_eos=keep_eos)(only(a, "logp", "ref", "mask", "u"))
    close(result.per_unit, neg_logsig(z))
    slope = (-BETA / SIZE * sig(-z))[:, None]
    close(result.gradients["logp_w"], slope * s["w"])
    close(result.gradients["logp_l"], -slope * s["l"])


def test_sampo_as_its_code_draws_other_tokens_for_the_reference():
    a = steps()
    s, r = subsets(a), subsets(a, "v")
    h = {x: (a[f"logp_{x}"] * s[x]).sum(-1) - (a[f"ref_{x}"] * r[x]).sum(-1) for x in "wl"}
    result = objective("sampo", beta=BETA, shared_mask=False)(
        only(a, "logp", "ref", "mask", "u", "v")
    )
    close(result.per_unit, neg_logsig(BETA * (h["w"] - h["l"])))


def test_sampo_averaged_is_the_cards():
    a = steps()
    d = {x: ((a[f"logp_{x}"] - a[f"ref_{x}"]) * a[f"mask_{x}"]).sum(-1) for x in "wl"}
    n = {x: a[f"mask_{x}"].sum(-1) for x in "wl"}
    h = (n["w"] + n["l"]) / 2 * (d["w"] / n["w"] - d["l"] / n["l"])
    result = objective("sampo", form="averaged", beta=BETA)(only(a, "logp", "ref", "mask"))
    close(result.per_unit, neg_logsig(BETA * h))
    sums = {f"lp_{x}": (a[f"logp_{x}"] * a[f"mask_{x}"]).sum(-1) for x in "wl"}
    sums |= {f"rf_{x}": (a[f"ref_{x}"] * a[f"mask_{x}"]).sum(-1) for x in "wl"}
    sums |= {f"n_{x}": n[x] for x in "wl"}
    close(objective("sampo", form="averaged", beta=BETA)(sums).value, result.value)


def test_sampo_of_equal_lengths_is_dpo():
    n = [3, 1, 8, 5, 2, 7]
    a = steps(1, (n, n))
    sampo = objective("sampo", beta=BETA)(only(a, "logp", "ref", "mask", "u"))
    dpo = objective("dpo", beta=BETA)(only(a, "logp", "ref", "mask"))
    close(sampo.per_unit, dpo.per_unit)
    close(sampo.gradients["logp_w"], dpo.gradients["logp_w"])


@given(st.integers(0, 200), st.floats(-2, 2))
def test_sampo_sees_no_length_in_a_log_ratio_that_is_the_same_at_each_token(seed, c):
    a = steps(seed)
    for x in "wl":
        a[f"logp_{x}"] = a[f"ref_{x}"] + c
    close(objective("sampo", beta=BETA)(only(a, "logp", "ref", "mask", "u")).per_unit, np.log(2.0))


def test_sampo_is_on_average_over_subsets_the_shorter_length_times_the_gap_of_means():
    """Through the very numbers that training draws, over many epochs."""
    n_w, n_l = 7, 3
    rng = np.random.default_rng(0)
    d = {"w": rng.normal(0, 1, n_w), "l": rng.normal(0, 1, n_l)}
    rows = Rows(
        [0], torch.zeros(2, dtype=torch.long), torch.tensor([[1] * 7, [2] * 7]),
        torch.arange(7) < torch.tensor([[n_w], [n_l]]),
    )  # fmt: skip
    batch = Batch(rows, {}, torch.ones(1))
    logp = torch.zeros(2, 7, dtype=torch.float64)
    logp[0], logp[1, :n_l] = torch.tensor(d["w"]), torch.tensor(d["l"])
    reward = get("sampo")().stages[0].updates[0].objective.reward
    found = []
    for epoch in range(500):
        drawn = draw(batch, needs(draws=["subset"]), 0, epoch)
        scores = Scores(
            logp, rows.mask, torch.ones(1), {"w": torch.tensor([0]), "l": torch.tensor([1])},
            refs={"ref": torch.zeros_like(logp)}, draws=drawn.draws,
        )  # fmt: skip
        w, l = scores["w"], scores["l"]  # noqa: E741
        found.append(float(reward(w, l) - reward(l, w)))
    expected = min(n_w, n_l) * (d["w"].mean() - d["l"].mean())
    assert abs(np.mean(found) - expected) < 3 * np.std(found) / np.sqrt(len(found))
    assert np.std(found) > 0.1


def test_sampo_drops_the_end_of_the_longer_answer_often_and_never_with_keep_eos():
    dropped = {False: 0, True: 0}
    for seed in range(20):
        a = steps(seed, ([8] * SIZE, [2] * SIZE))
        for keep in dropped:
            gradient = objective("sampo", keep_eos=keep)(
                only(a, "logp", "ref", "mask", "u")
            ).gradients["logp_w"]
            dropped[keep] += int((gradient[:, 7] == 0).sum())
    assert dropped[True] == 0
    assert dropped[False] > 60


def test_random_numbers_are_functions_of_seed_epoch_and_row_whatever_is_beside_it():
    first = torch.tensor([[5, 6, 7], [8, 9, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    both = Batch(
        Rows([0, 1], torch.tensor([0, 1]), first, mask), {"own": torch.tensor([0, 1])},
        torch.ones(2),
    )  # fmt: skip
    alone = Batch(
        Rows([1], torch.tensor([0]), first[1:, :2], mask[1:, :2]), {"own": torch.tensor([0])},
        torch.ones(1),
    )  # fmt: skip
    asked = needs(draws=["subset", "other"])
    drawn, again = draw(both, asked, 0, 1), draw(alone, asked, 0, 1)
    assert torch.equal(drawn.draws["subset"][1, :2], again.draws["subset"][0])
    assert torch.equal(drawn.take(torch.tensor([1])).draws["subset"], again.draws["subset"])
    assert not torch.equal(drawn.draws["subset"], drawn.draws["other"])
    for parts in ((0, 2), (1, 1)):
        assert not torch.equal(draw(both, asked, *parts).draws["subset"], drawn.draws["subset"])


def test_sampo_refuses_sums_and_what_a_form_does_not_read():
    with pytest.raises(OptionError, match="sampo looks at single steps"):
        objective("sampo")(lp_w=[-3.0], lp_l=[-2.0], rf_w=[-3.0], rf_l=[-2.0])
    with pytest.raises(OptionError, match="no place in form=averaged"):
        objective("sampo", form="averaged", keep_eos=True)
    a = only(steps(), "logp", "ref", "mask", "u")
    with pytest.raises(NumericsError, match=r"outside \[0, 1\)"):
        objective("sampo")(dict(a, u_w=a["u_w"] + 1))
    with pytest.raises(OptionError, match="needs the array 'u_l'"):
        objective("sampo")({k: v for k, v in a.items() if k != "u_l"})


def test_sampo_in_iterations_shares_the_epochs_and_takes_the_last_policy_as_reference():
    stages = get("sampo")(iterations=3).stages
    assert [stage.reference("ref").weights for stage in stages] == ["start", "previous", "previous"]
    assert sum(stage.share for stage in stages) == pytest.approx(1.0)


def masks(a):
    """Differing tokens of both sides by difflib on the token lists, as the card says."""
    out = {s: np.zeros((SIZE, T)) for s in "wl"}
    for i in range(SIZE):
        n = {s: int(a[f"mask_{s}"][i].sum()) for s in "wl"}
        w, l = (list(a[f"tokens_{s}"][i][: n[s]]) for s in "wl")  # noqa: E741
        turned = w < l  # the documented order of ties
        pair = (w, l) if turned else (l, w)
        for tag, i1, i2, j1, j2 in SequenceMatcher(None, *pair, autojunk=False).get_opcodes():
            if tag != "equal":
                out["w" if turned else "l"][i, i1:i2] = 1
                out["l" if turned else "w"][i, j1:j2] = 1
    return out


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("stop", [False, True])
def test_bmc_loss_and_gradient_are_the_cards_with_constant_weights(form, stop):
    a, delta = steps(), 1.5
    m = masks(a)
    h, lam = {}, {}
    for s in "wl":
        differs = m[s] * (1 - a[f"stop_word_{s}"]) if stop else m[s]
        lam[s] = (1 + differs * np.minimum(np.exp(-a[f"logp_{s}"]), delta)) * a[f"mask_{s}"]
        theirs = (1 + differs * np.minimum(np.exp(-a[f"ref_{s}"]), delta)) * a[f"mask_{s}"]
        weight = theirs if form == "code" else lam[s]
        h[s] = (lam[s] * a[f"logp_{s}"] - weight * a[f"ref_{s}"]).sum(-1)
    z = BETA * (h["w"] - h["l"])
    names = ("logp", "ref", "mask", "tokens", *(("stop_word",) if stop else ()))
    result = objective("bmc", form=form, beta=BETA, delta=delta, exclude_stopwords=stop)(
        only(a, *names)
    )
    close(result.per_unit, neg_logsig(z))
    slope = (-BETA / SIZE * sig(-z))[:, None]
    close(result.gradients["logp_w"], slope * lam["w"])
    close(result.gradients["logp_l"], -slope * lam["l"])


def test_bmc_at_delta_zero_is_dpo_and_at_a_large_delta_weighs_by_one_over_p():
    a = only(steps(), "logp", "ref", "mask", "tokens")
    bmc = objective("bmc", beta=BETA, delta=0.0, exclude_stopwords=False)(a)
    dpo = objective("dpo", beta=BETA)({k: v for k, v in a.items() if k[:6] != "tokens"})
    close(bmc.per_unit, dpo.per_unit)
    one = {"logp_w": [[-2.0]], "logp_l": [[-1.0]], "ref_w": [[0.0]], "ref_l": [[0.0]]}
    far = objective("bmc", beta=1.0, delta=1e9, exclude_stopwords=False)(
        one | {"tokens_w": [[1]], "tokens_l": [[2]]}
    )
    close(far.per_unit, neg_logsig(-2.0 * (1 + np.exp(2)) + 1.0 * (1 + np.exp(1))))


def test_bmc_of_identical_answers_has_no_difference():
    a = only(steps(1, ([5] * SIZE, [5] * SIZE)), "logp", "ref", "mask", "tokens")
    a |= {f"{n}_l": a[f"{n}_w"] for n in ("logp", "ref", "tokens")}
    with pytest.warns(match="look identical"):
        close(objective("bmc", exclude_stopwords=False)(a).per_unit, np.log(2.0))


words = st.lists(st.integers(0, 3), min_size=1, max_size=9)


@given(words, words)
def test_swapping_the_answers_swaps_what_differs_and_shared_tokens_spell_the_same(w, l):  # noqa: E741
    size = max(len(w), len(l))
    mask = torch.arange(size) < torch.tensor([[len(w)], [len(l)]])
    tokens = torch.zeros(2, size)
    tokens[0, : len(w)], tokens[1, : len(l)] = torch.tensor(w).float(), torch.tensor(l).float()
    scores = Scores(
        torch.zeros(2, size), mask, torch.ones(1),
        {"w": torch.tensor([0]), "l": torch.tensor([1])}, signals={"steps": tokens},
    )  # fmt: skip
    new_w, new_l = differing(scores["w"], scores["l"]), differing(scores["l"], scores["w"])
    swapped = Scores(
        torch.zeros(2, size), mask, torch.ones(1),
        {"w": torch.tensor([1]), "l": torch.tensor([0])}, signals={"steps": tokens},
    )  # fmt: skip
    assert torch.equal(differing(swapped["l"], swapped["w"]), new_w)
    shared = [[t for t, new in zip(x, n[0].tolist(), strict=False) if not new]
              for x, n in ((w, new_w), (l, new_l))]  # fmt: skip
    assert shared[0] == shared[1]
    assert not (new_w & ~mask[0]).any()


def test_bmc_refuses_sums_missing_tokens_and_a_negative_delta():
    with pytest.raises(OptionError, match="bmc looks at single steps"):
        objective("bmc")(lp_w=[-3.0], lp_l=[-2.0], rf_w=[-3.0], rf_l=[-2.0])
    with pytest.raises(OptionError, match="needs the array 'tokens_w'"):
        objective("bmc", exclude_stopwords=False)(only(steps(), "logp", "ref", "mask"))
    with pytest.raises(OptionError, match=r"delta=-1\.0 is not allowed"):
        objective("bmc", delta=-1.0)
