"""dpo-kernels against its card, worked out by hand in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyalign import objective
from polyalign.errors import DataError, NumericsError, OptionError
from polyalign.feedback.records import Pair
from polyalign.loops.embedding import Embed
from polyalign.methods import get
from polyalign.objectives.kernels import (
    FIELDS,
    Hierarchical,
    Likeness,
    Mahalanobis,
    Polynomial,
    Rbf,
    Spectral,
    precision_of,
    unit_length,
)
from polyalign.policies.divergences import between
from tests.methods.by_hand import close, neg_logsig, sig
from tests.methods.test_direct_weighted import SIZE, T, V, laws, softmax, taken

D = 3
RNG = np.random.default_rng(5)
E = {name: RNG.normal(0, 0.6, (SIZE, D)) for name in ("e_x", "e_w", "e_l")}
ROOT = RNG.normal(0, 1, (D, D))
S = ROOT @ ROOT.T + np.eye(D)


def rbf(a, b):
    return np.exp(-((a - b) ** 2).sum(-1) / (2 * 0.8**2))


def polynomial(a, b):
    return ((a * b).sum(-1) + 2.5) ** 3


def spectral(a, b):
    d = ((a - b) ** 2).sum(-1)
    return 0.7 * np.exp(-0.5 * d) + 0.4 * np.exp(-0.2 * d)


def mahalanobis(a, b):
    return np.exp(-np.einsum("ui,ij,uj->u", a - b, np.linalg.inv(S), a - b) / 2)


def mixture(a, b, logits=(0.0,) * 6):
    w = [np.exp(logits[i]) / np.exp(logits[i : i + 2]).sum() for i in (0, 2, 4)]
    near = w[0] * rbf(a, b) + (1 - w[0]) * polynomial(a, b)
    far = w[1] * spectral(a, b) + (1 - w[1]) * mahalanobis(a, b)
    return w[2] * near + (1 - w[2]) * far


KERNELS = {
    "rbf": (rbf, {"rbf_sigma": 0.8}),
    "polynomial": (polynomial, {"poly_c": 2.5, "poly_degree": 3}),
    "spectral": (spectral, {"spectral_lam": (0.7, 0.4), "spectral_a": (0.5, 0.2)}),
    "mahalanobis": (mahalanobis, {}),
}
KERNELS["mixture"] = (
    mixture,
    {k: v for _, options in KERNELS.values() for k, v in options.items()},
)


def divergences(p, q):
    m = (p + q) / 2
    kl = lambda a, b: (a * np.log(a / b)).sum(-1)  # noqa: E731
    return {
        "kl": kl(p, q),
        "forward-kl": kl(q, p),
        "js": (kl(p, m) + kl(q, m)) / 2,
        "hellinger": ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(-1) / 2,
        "renyi": np.log((p**0.7 * q**0.3).sum(-1)) / (0.7 - 1),
        "bhattacharyya": -np.log(np.sqrt(p * q).sum(-1)),
        "wasserstein": 1 - np.minimum(p, q).sum(-1),
    }


def margins(a):
    """Summed log-ratios and policy sums of both sides, and gradients of the sums by the logits."""
    out = {}
    for s in "wl":
        p, q = softmax(a[f"logits_{s}"]), softmax(a[f"ref_logits_{s}"])
        mask, tokens = a[f"mask_{s}"], a[f"tokens_{s}"]
        out[f"lp_{s}"] = (taken(p, tokens) * mask).sum(-1)
        out[f"rf_{s}"] = (taken(q, tokens) * mask).sum(-1)
        out[f"d_{s}"] = (np.eye(V)[tokens] - p) * mask[..., None]
    return out


def penalty(a, name):
    """The mean over both sides of the mean divergence over their steps."""
    means = []
    for s in "wl":
        d = divergences(softmax(a[f"logits_{s}"]), softmax(a[f"ref_logits_{s}"]))[name]
        mask = a[f"mask_{s}"]
        means.append((d * mask).sum(-1) / mask.sum(-1))
    return (means[0] + means[1]) / 2


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_margin_adds_the_kernels_preference(kernel):
    k, options = KERNELS[kernel]
    a, kappa, gamma = laws(), 0.4, 0.7
    m = margins(a)
    gap = np.log(k(E["e_x"], E["e_w"])) - np.log(k(E["e_x"], E["e_l"]))
    z = kappa * ((m["lp_w"] - m["rf_w"]) - (m["lp_l"] - m["rf_l"]) + gamma * gap)
    result = objective(
        "dpo-kernels", kernel=kernel, kappa=kappa, gamma=gamma, alpha=0.0, **options
    )(a | E | {"S": S})
    close(result.per_unit, neg_logsig(z))
    slope = (-kappa / SIZE * sig(-z))[:, None, None]
    close(result.gradients["logits_w"], slope * m["d_w"])
    close(result.gradients["logits_l"], -slope * m["d_l"])


@pytest.mark.parametrize(
    "name", ["kl", "forward-kl", "js", "hellinger", "renyi", "bhattacharyya", "wasserstein"]
)
def test_the_divergence_is_charged_at_alpha_and_its_gradient_is_right(name):
    a, alpha = laws(), 0.6
    order = {"renyi_alpha": 0.7} if name == "renyi" else {}
    hyper = {"gamma": 0.0, "divergence": name, **order}
    charged = objective("dpo-kernels", alpha=alpha, **hyper)
    free = objective("dpo-kernels", alpha=0.0, gamma=0.0)
    result = charged(a)
    close(result.per_unit - free(a).per_unit, alpha * penalty(a, name))
    close(result.metrics["divergence"], penalty(a, name).mean())
    step = np.zeros((SIZE, T, V))
    step[1, 0, 2] = 1e-5
    ends = [charged(dict(a, logits_w=a["logits_w"] + sign * step)).value for sign in (1, -1)]
    close((ends[0] - ends[1]) / 2e-5, result.gradients["logits_w"][1, 0, 2], 1e-8)


def test_the_papers_form_is_linear_without_a_reference_in_the_margin():
    a, kappa, gamma, alpha = laws(), 0.4, 0.7, 0.5
    m = margins(a)
    gap = np.log(rbf(E["e_x"], E["e_w"])) - np.log(rbf(E["e_x"], E["e_l"]))
    margin = kappa * (m["lp_w"] - m["lp_l"] + gamma * gap)
    result = objective(
        "dpo-kernels", link="identity", kappa=kappa, gamma=gamma, alpha=alpha, rbf_sigma=0.8
    )(a | E)
    close(result.value, (-margin + alpha * penalty(a, "kl")).mean())


def test_with_the_linear_link_and_constant_embeddings_the_kernel_gives_the_policy_no_gradient():
    a = laws()
    without = objective("dpo-kernels", link="identity", gamma=0.0)(a)
    for kernel in ("rbf", "spectral"):
        kernelled = objective("dpo-kernels", link="identity", kernel=kernel)(a | E)
        close(kernelled.gradients["logits_w"], without.gradients["logits_w"])
        assert abs(kernelled.value - without.value) > 1e-3


def test_without_kernel_and_divergence_it_is_dpo_with_beta_kappa():
    sums = {k: v for k, v in margins(laws()).items() if k[0] != "d"}
    kernels = objective("dpo-kernels", gamma=0.0, alpha=0.0, kappa=0.3)
    close(kernels(sums).per_unit, objective("dpo", beta=0.3)(sums).per_unit)


def test_trained_mixing_weights_get_their_gradient_and_the_mixture_their_value():
    a, logits = laws(), RNG.normal(0, 1, 6)
    k, options = KERNELS["mixture"]
    mixed = objective("dpo-kernels", kernel="mixture", alpha=0.0, **options)
    m = margins(a)

    def value(logits):
        gap = np.log(k(E["e_x"], E["e_w"], logits)) - np.log(k(E["e_x"], E["e_l"], logits))
        z = (m["lp_w"] - m["rf_w"]) - (m["lp_l"] - m["rf_l"]) + gap
        return neg_logsig(z).mean()

    result = mixed(a | E | {"S": S, "kernel": logits})
    close(result.value, value(logits))
    for i in range(6):
        step = 1e-6 * np.eye(6)[i]
        close(
            result.gradients["kernel"][i],
            (value(logits + step) - value(logits - step)) / 2e-6,
            1e-8,
        )


vectors = st.lists(st.floats(-2, 2), min_size=2 * D, max_size=2 * D)


@given(vectors)
def test_kernels_are_symmetric_and_one_at_no_distance(numbers):
    a, b = torch.tensor(numbers, dtype=torch.float64).reshape(2, 1, D)
    precision = precision_of(torch.tensor(RNG.normal(0, 1, (9, D))))
    for kernel in (Rbf(0.7), Polynomial(5.0, 2), Spectral(), Mahalanobis(), Hierarchical()):
        there, back = Likeness.of(a, b, precision), Likeness.of(b, a, precision)
        close(kernel(there).item(), kernel(back).item(), 1e-9)
    same = Likeness.of(a, a, precision)
    close([Rbf(0.7)(same).item(), Mahalanobis()(same).item()], 0.0)


def test_mahalanobis_with_a_multiple_of_the_identity_is_rbf():
    a = laws()
    rbf_value = objective("dpo-kernels", rbf_sigma=0.8, alpha=0.0)(a | E).value
    both = a | E | {"S": 0.8**2 * np.eye(D)}
    close(objective("dpo-kernels", kernel="mahalanobis", alpha=0.0)(both).value, rbf_value)


def test_a_mixture_with_all_weight_on_one_kernel_is_that_kernel():
    likeness = Likeness.of(*(torch.tensor(E[n]) for n in ("e_x", "e_w")), torch.tensor(S))
    parts = {(0, 0): Rbf(), (0, 1): Polynomial(), (1, 0): Spectral(), (1, 1): Mahalanobis()}
    for (group, member), kernel in parts.items():
        logits = torch.zeros(6, dtype=torch.float64)
        logits[2 * group + member], logits[4 + group] = 80.0, 80.0
        mixed = Hierarchical()(likeness, logits)
        close(mixed.numpy(), kernel(likeness).numpy(), 1e-12)


laws_of_four = st.lists(st.floats(-4, 4), min_size=8, max_size=8)


@given(laws_of_four)
def test_divergences_keep_their_bounds_and_identities(numbers):
    p, q = torch.tensor(numbers, dtype=torch.float64).reshape(2, 4).log_softmax(-1)
    js = float(between("js(policy|ref)", p, q))
    half = float(between("log_overlap(policy|ref)@0.5", p, q))
    tv = float(between("tv(policy|ref)", p, q))
    hellinger, bhattacharyya, renyi_half = -math.expm1(half), -half, half / (0.5 - 1)
    near_one = float(between("log_overlap(policy|ref)@0.99999", p, q)) / (0.99999 - 1)
    kl = float(between("kl(policy|ref)", p, q))
    assert -1e-12 <= js <= math.log(2) + 1e-12
    assert -1e-12 <= hellinger <= 1
    assert bhattacharyya >= -1e-12
    # Squared, as a root makes much of the rounding of nearly equal laws.
    assert hellinger - 1e-12 <= tv
    assert tv**2 <= 2 * hellinger + 1e-12
    assert tv**2 <= kl / 2 + 1e-12  # Pinsker
    close(renyi_half, 2 * bhattacharyya, 1e-12)
    close(hellinger, 1 - math.exp(-bhattacharyya), 1e-12)
    assert abs(near_one - kl) <= 1e-3 * (1 + kl)
    for name in (
        "js(policy|ref)",
        "tv(policy|ref)",
        "log_overlap(policy|ref)@0.5",
        "kl(policy|ref)",
    ):
        close(float(between(name, p, p)), 0.0, 1e-12)


def test_embeddings_of_length_one_and_a_shrunk_covariance():
    e = torch.tensor(RNG.normal(0, 3, (20, D)))
    close(unit_length(e).norm(dim=-1).numpy(), 1.0)
    covariance = np.cov(e.numpy().T)
    expected = 0.7 * covariance + 0.3 * np.trace(covariance) / D * np.eye(D)
    close(precision_of(e, 0.3).numpy(), np.linalg.inv(expected), 1e-9)


class Fixed:
    """A data step's context that keeps nothing."""

    stage = 0

    def __init__(self, records):
        self.session = self
        self.records = records

    def kept(self, name, make):
        return make()


def pairs_with(meta):
    return [
        Pair(key=f"p{i}", prompt="x", chosen="y", rejected="z", meta=m) for i, m in enumerate(meta)
    ]


def test_given_embeddings_become_the_kernels_numbers():
    vectors = RNG.normal(0, 1, (6, 3, D))
    names = ("embedding_prompt", "embedding_chosen", "embedding_rejected")
    records = pairs_with([{n: list(v) for n, v in zip(names, row, strict=True)} for row in vectors])
    made = Embed("given", ridge=0.2)(records, Fixed(records))
    u = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    flat = u.transpose(1, 0, 2).reshape(-1, D)
    covariance = np.cov(flat.T)
    inverse = np.linalg.inv(0.8 * covariance + 0.2 * np.trace(covariance) / D * np.eye(D))
    for (i, record), (k, side) in itertools.product(
        enumerate(made), ((1, "chosen"), (2, "rejected"))
    ):
        gap = u[i, 0] - u[i, k]
        close(record.fields[f"dot_{side}"], u[i, 0] @ u[i, k])
        close(record.fields[f"distance_{side}"], gap @ gap)
        close(record.fields[f"mahalanobis_{side}"], gap @ inverse @ gap)


def test_missing_embeddings_and_those_of_other_lengths_are_refused():
    with pytest.raises(DataError, match="p0 has no 'embedding_prompt'"):
        Embed("given")(pairs_with([{}]), Fixed(pairs_with([{}])))
    names = ("embedding_prompt", "embedding_chosen", "embedding_rejected")
    uneven = pairs_with([dict.fromkeys(names, [1.0, 0.0]), dict.fromkeys(names, [1.0])])
    with pytest.raises(DataError, match="p1 has no 'embedding_prompt' of the others' length"):
        Embed("given")(uneven, Fixed(uneven))


def test_bad_input_is_refused():
    a = laws()
    with pytest.raises(OptionError, match="distance_chosen|dot_chosen|mahalanobis"):
        objective("dpo-kernels")(a)
    with pytest.raises(NumericsError, match="not symmetric and positive definite"):
        objective("dpo-kernels", kernel="mahalanobis")(a | E | {"S": -np.eye(D)})
    for hyper, said in (
        ({"alpha": -1.0}, "is not allowed"),
        ({"renyi_alpha": 0.0}, "is not allowed"),
        ({"divergence": "renyi", "renyi_alpha": 1.0}, "renyi_alpha=1 is kl"),
        ({"divergence": "wassertein"}, "Did you mean wasserstein"),
        ({"renyi_alpha": 0.5}, "only read by divergence=renyi"),
        ({"poly_c": 2.0}, "poly_c has no place in kernel=rbf"),
        ({"rbf_sigma": 2.0, "gamma": 0.0}, "rbf_sigma has no place"),
        ({"kernel": "spectral", "gamma": 0.0}, "kernel and encoder have no effect"),
        ({"encoder": "given", "gamma": 0.0}, "kernel and encoder have no effect"),
        ({"divergence": "js", "alpha": 0.0}, "divergence=js has no effect with alpha=0"),
        ({"kernel": "spectral", "spectral_lam": (1.0,)}, "1 spectral_lam for 2 spectral_a"),
    ):
        with pytest.raises(OptionError, match=said):
            get("dpo-kernels")(**hyper)


def test_plain_pairs_need_no_embeddings_where_the_kernel_has_no_weight():
    stage = get("dpo-kernels")(gamma=0.0).stages[0]
    assert not stage.streams["data"].steps
    assert not set(FIELDS) & stage.updates[0].objective.needs.fields
