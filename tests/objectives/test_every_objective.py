"""What must hold of every declared objective, whatever it computes."""

from dataclasses import replace

import pytest
import torch

from polyalign.methods.build_index import declarations
from polyalign.objectives import reduce
from polyalign.types import SIGNALS, Scores, Stateful

U, T = 4, 6
VARIANTS = {
    "dpo": [
        {},
        {"loss": "cdpo", "label_smoothing": 0.1},
        {"loss": "robust", "label_smoothing": 0.1},
    ],
    "ipo": [{}, {"length_average": False}],
    "slic": [{}, {"form": "hinge-norm"}],
    "cpo": [
        {},
        {"form": "code", "label_smoothing": 0.1},
        {"link": "hinge"},
        {"link": "ipo", "alpha": 0.0},
    ],
    "f-dpo": [{"divergence": d} for d in ("js", "forward_kl", "alpha", "reverse_kl")],
    "alphapo": [{}, {"alpha": 0.0}, {"alpha": -0.5}],
    "daa-blur": [
        {"link": link, "reward": reward, "sft_weight": 0.1}
        for link in ("pairwise", "pointwise")
        for reward in ("odds", "ratio", "normalised-ratio", "average")
    ],
    "rpo": [{}, {"form": "trl"}, {"baseline": "gold"}, {"eta": 0.0}],
    "triple-po": [{}, {"form": "code", "loss": "tpo-l"}, {"link": "hinge", "alpha": 0.0}],
    "wrpo": [{}, {"alpha": 0.3, "label_smoothing": 0.1}],
    "simpo": [{}, {"sft_weight": 0.5}, {"link": "hinge"}],
    "aot": [{}, {"form": "unpaired"}, {"cost": "hinge", "power": 2.0, "margin": 1.0}],
    "tdpo": [{}, {"variant": "tdpo1"}],
    "oreo": [{}, {"level": "step"}, {"level": "response"}, {"alpha": 0.0}],
    "sft": [{"reduction": r} for r in ("token", "sequence", "sum")],
    "wpo": [{}, {"alignment": "greedy"}, {"alignment": "none", "clip_max": 2.0}],
    "sampo": [{}, {"keep_eos": True}, {"shared_mask": False}, {"form": "averaged"}],
    "bmc": [{}, {"form": "code"}, {"exclude_stopwords": False}],
    "robust-dpo": [{}, {"loss": "squared"}, {"loss": "hinge"}],
    "implicit-reward-sft": [
        *({"f": f} for f in ("pearson", "tv", "hellinger", "reverse-kl", "js")),
        {"saturate": True},
    ],
    "dpo-kernels": [
        {},
        {"kernel": "mixture", "divergence": "renyi"},
        {"kernel": "polynomial", "divergence": "js", "link": "identity"},
        {"kernel": "mahalanobis", "divergence": "hellinger"},
        {"kernel": "spectral", "divergence": "bhattacharyya"},
        {"alpha": 0.0},
        {"gamma": 0.0, "divergence": "forward-kl"},
    ],
    "offline-rlhf": [
        {},
        {"form": "rwr"},
        {"form": "rwr", "normalise": "none", "reduction": "sum"},
        {"form": "rwr", "reduction": "sequence"},
    ],
    "kto": [{}, {"zero_point": "none"}],
    "bco": [{}, {"form": "code"}, {"matching": True}],
    "nca": [{"form": form, "beta": 0.5} for form in ("paper", "code", "pair", "biased")],
    "dro": [{}, {"values": "prompt", "tau": 0.5}],
    "infonca": [{"T": 0.5, "beta": 0.5}, {"form": "code"}],
    "exo": [{}, {"form": "pref"}],
    "lipo": [
        {"variant": "lambda", "labels": "wins"},
        {"variant": "pair-hinge", "pair_reduction": "mean"},
        *({"variant": v} for v in ("list-mle", "softmax", "point-mse", "point-sigmoid")),
    ],
    "pro": [{}, {"form": "plackett-luce", "sft_weight": 0.0}],
    "rrhf": [{}, {"nll": "mean", "length_penalty": 0.5}],
    "brain": [{}, {"proposal": "given"}, {"form": "dpg"}],
    "grpo": [
        {},
        {"beta": 0.0, "aggregation": "dapo", "delta": 3.0},
        {"aggregation": "dr_grpo", "drop_truncated": True},
        {"aggregation": "gspo", "level": "sequence"},
        {"surrogate": "cispo", "kl_correction": True},
    ],
}


def cases():
    for id, declared in declarations().items():
        for hyper in VARIANTS.get(id, [{}]):
            for number, update in enumerate(declared(**hyper).stages[0].updates):
                options = ",".join(f"{k}={v}" for k, v in hyper.items())
                if id != "sac":
                    yield pytest.param(update.objective, id=f"{id}[{options}]/{number}")


LIST = torch.tensor([[0, 1, 2], [3, 4, -1], [5, 6, 7], [8, -1, 9]])
"""A list role's rows: of three, of two, and with a gap."""


def places(roles):
    """Row indices of each role, and how many rows there are."""
    index, rows = {}, 0
    for role in roles:
        own = LIST if role == "answers" else torch.arange(U)
        index[role] = torch.where(own >= 0, own + rows, -1)
        rows += int((own >= 0).sum())
    return index, rows


def make(objective, seed=0, dtype=torch.float64):
    """Random scores with every role, reference, signal and field that an objective needs."""
    draw = torch.Generator().manual_seed(seed)
    roles = sorted(objective.needs.roles | objective.needs.statistics)
    index, n = places(roles)
    number = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=dtype)
    if "answers" in roles:
        number = torch.tensor([[1, 0, 0.5], [0, 1, 0], [1, 1, 0], [0.5, 0, 0.25]], dtype=dtype)
    mask = torch.rand(n, T, generator=draw) < 0.7
    mask[:, 1] = True

    def numbers():
        return (torch.rand(n, T, generator=draw, dtype=torch.float64) * -2 - 0.05).to(dtype)

    logp = numbers()
    return Scores(
        logp=torch.where(mask, logp, 0.0).requires_grad_(),
        mask=mask,
        weight=torch.rand(U, generator=draw, dtype=torch.float64) + 0.5,
        roles=index,
        refs={name: numbers() for name in objective.needs.references},
        old=numbers(),
        signals={
            name: -numbers() if name in SIGNALS else numbers() for name in objective.needs.signals
        },
        fields=dict.fromkeys(objective.needs.fields, number),
        segment=torch.arange(T).expand(n, T) // 2,
        draws={
            name: torch.rand(n, T, generator=draw, dtype=torch.float64)
            for name in sorted(objective.needs.draws)
        },
        modules={
            name: lambda: torch.zeros(6, dtype=torch.float64) for name in objective.needs.modules
        },
    )


def evaluate(objective, scores):
    state = {}
    if isinstance(objective, Stateful):
        with torch.no_grad():
            state = objective.before(scores, objective.start())
    return objective(scores, state)


def gradient(objective, scores):
    value = reduce(evaluate(objective, scores))
    if not value.requires_grad:  # a value's loss: the policy is constant for it
        return torch.zeros_like(scores.logp)
    return torch.autograd.grad(value, scores.logp)[0]


@pytest.mark.parametrize("objective", cases())
def test_weights_say_nothing_about_log_probabilities(objective):
    real = make(objective)
    zeros = torch.zeros_like(real.logp)
    blank = replace(
        real,
        logp=zeros,
        refs=dict.fromkeys(real.refs, zeros),
        old=zeros,
        signals=dict.fromkeys(real.signals, zeros),
    )
    state = objective.start() if isinstance(objective, Stateful) else {}
    for term, other in zip(
        evaluate(objective, real).terms, objective(blank, state).terms, strict=True
    ):
        assert torch.equal(term.weight, other.weight)
        assert (term.weight >= 0).all()
        assert not term.weight.requires_grad


@pytest.mark.parametrize("objective", cases())
def test_loss_gradient_and_metrics_are_finite_and_metrics_carry_no_gradient(objective):
    for scores in (make(objective), make(objective, dtype=torch.float32)):
        loss = evaluate(objective, scores)
        assert torch.isfinite(reduce(loss))
        assert torch.isfinite(gradient(objective, scores)).all()
        for term in loss.metrics.values():
            assert torch.isfinite(term.value).all()
            assert not term.value.requires_grad


@pytest.mark.parametrize("objective", cases())
def test_T12_T27_what_is_masked_does_not_leak_whatever_it_holds(objective):
    clean = make(objective)
    dirty = replace(
        clean,
        logp=torch.where(clean.mask, clean.logp.detach(), torch.nan).requires_grad_(),
        refs={k: torch.where(clean.mask, v, torch.nan) for k, v in clean.refs.items()},
        old=torch.where(clean.mask, clean.old, torch.inf),
        signals={k: torch.where(clean.mask, v, torch.nan) for k, v in clean.signals.items()},
        draws={k: torch.where(clean.mask, v, torch.nan) for k, v in clean.draws.items()},
    )
    torch.testing.assert_close(
        reduce(evaluate(objective, dirty)), reduce(evaluate(objective, clean))
    )
    torch.testing.assert_close(gradient(objective, dirty), gradient(objective, clean))


@pytest.mark.parametrize("objective", cases())
def test_T3_T4_T5_padding_on_either_side_changes_nothing(objective):
    scores = make(objective)

    def pad(x):
        left, right = x.new_zeros(len(x), 2), x.new_zeros(len(x), 3)
        return torch.cat([left, x, right], 1)

    wide = replace(
        scores,
        logp=pad(scores.logp),
        mask=pad(scores.mask),
        refs={k: pad(v) for k, v in scores.refs.items()},
        old=pad(scores.old),
        signals={k: pad(v) for k, v in scores.signals.items()},
        segment=pad(scores.segment),
        draws={k: pad(v) for k, v in scores.draws.items()},
    )
    torch.testing.assert_close(
        reduce(evaluate(objective, wide)), reduce(evaluate(objective, scores))
    )


@pytest.mark.parametrize("objective", cases())
def test_the_order_of_units_changes_nothing(objective):
    scores = make(objective)
    order = torch.tensor([2, 0, 3, 1])
    moved = replace(
        scores,
        weight=scores.weight[order],
        roles={k: v[order] for k, v in scores.roles.items()},
        fields={k: v[order] for k, v in scores.fields.items()},
    )
    torch.testing.assert_close(
        reduce(evaluate(objective, moved)), reduce(evaluate(objective, scores))
    )


@pytest.mark.parametrize("objective", cases())
def test_T1_units_of_weight_zero_count_for_nothing(objective):
    scores = make(objective)
    kept = torch.tensor([0, 2, 3])
    weight = scores.weight.clone()
    weight[1] = 0
    part = replace(
        scores,
        weight=weight[kept],
        roles={k: v[kept] for k, v in scores.roles.items()},
        fields={k: v[kept] for k, v in scores.fields.items()},
    )
    without = reduce(evaluate(objective, replace(scores, weight=weight)))
    torch.testing.assert_close(without, reduce(evaluate(objective, part)))


@pytest.mark.parametrize(
    "objective", [case for case in cases() if case.values[0].needs.couples != "batch"]
)
def test_T1_T10_a_step_cut_in_micro_batches_has_the_same_gradient(objective):
    scores = make(objective)
    state = objective.start() if isinstance(objective, Stateful) else {}
    whole = objective(scores, state)
    sums = [term.weight.sum() for term in whole.terms]
    total = 0.0
    for cut in (torch.tensor([0]), torch.tensor([3, 1]), torch.tensor([2])):
        part = replace(
            scores,
            weight=scores.weight[cut],
            roles={k: v[cut] for k, v in scores.roles.items()},
            fields={k: v[cut] for k, v in scores.fields.items()},
        )
        for term, denominator in zip(objective(part, state).terms, sums, strict=True):
            total = total + term.scale * (term.value * term.weight).sum() / denominator
    torch.testing.assert_close(total, reduce(whole))


@pytest.mark.parametrize("objective", cases())
def test_objectives_are_values_that_compare_and_hash(objective):
    assert objective == replace(objective)
    assert hash(objective) == hash(replace(objective))
