"""The parts of objectives: numbers, rewards, margins, links, anchors, the normaliser."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyalign.objectives import (
    Field,
    Hinge,
    Logistic,
    LogOdds,
    MeanLogp,
    Mixed,
    Nll,
    Pairwise,
    Robust,
    Squared,
    SumLogp,
    SumLogRatio,
    reduce,
)
from polyalign.objectives.numbers import k3, log1mexp, log_odds, suffix_sums
from polyalign.objectives.transport import quantile_coupling
from polyalign.types import Loss, Scores, Term


def scores(chosen, rejected, fields=None, **more):
    rows = torch.tensor([chosen, rejected], dtype=torch.float64).unsqueeze(-1)
    u = len(chosen)
    return Scores(
        logp=rows.reshape(2 * u, 1),
        mask=torch.ones(2 * u, 1, dtype=torch.bool),
        weight=torch.ones(u),
        roles={"chosen": torch.arange(u), "rejected": torch.arange(u) + u},
        fields=fields or {},
        **more,
    )


@given(st.floats(-700, -1e-12))
def test_log1mexp_is_accurate_on_both_sides_of_its_switch(a):
    exact = math.log(-math.expm1(a)) if a > -0.1 else math.log1p(-math.exp(a))
    got = log1mexp(torch.tensor(a, dtype=torch.float64)).item()
    assert got == pytest.approx(exact, rel=1e-9, abs=1e-300)


def test_log1mexp_and_its_gradient_are_continuous_at_the_switch():
    a = torch.tensor([-math.log(2) - 1e-9, -math.log(2) + 1e-9], dtype=torch.float64)
    a.requires_grad_()
    value = log1mexp(a)
    value.sum().backward()
    assert abs(value[0] - value[1]).item() < 1e-8
    assert abs(a.grad[0] - a.grad[1]).item() < 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a", [0.0, -1e-9, -1e-4, -0.7, -50.0, -1e4])
def test_T31_log_odds_and_their_gradient_are_finite_and_the_gradient_never_zero(a, dtype):
    x = torch.tensor(a, dtype=dtype, requires_grad=True)
    value = log_odds(x)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(x.grad)
    assert x.grad >= 1


@given(st.floats(0.001, 0.999))
def test_log_odds_are_the_logit_of_the_probability(p):
    got = log_odds(torch.tensor(math.log(p), dtype=torch.float64)).item()
    assert got == pytest.approx(math.log(p / (1 - p)), abs=1e-9)


@given(st.floats(-20, 20))
def test_T19_k3_is_not_negative_and_has_the_gradient_one_minus_the_ratio(r):
    logp = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    value = k3(r - logp)
    value.backward()
    assert value.item() >= 0
    assert logp.grad.item() == pytest.approx(1 - math.exp(r), rel=1e-12)


def test_suffix_sums_run_from_each_position_to_the_end():
    assert suffix_sums(torch.tensor([1.0, 2.0, 3.0])).tolist() == [6.0, 5.0, 3.0]


def test_a_mixed_link_reads_soft_labels_from_fields():
    s = scores(
        [0.0, 0.0], [-1.0, -3.0], {"p": torch.tensor([0.9, 0.6]), "q": torch.tensor([0.1, 0.4])}
    )
    link = Mixed("p", "q")
    assert link.needs.fields == {"p", "q"}
    loss = Pairwise(SumLogp(), link=link)(s, {})
    z = torch.tensor([1.0, 3.0])
    expected = torch.tensor([0.9, 0.6]) * torch.log1p((-z).exp())
    expected += torch.tensor([0.1, 0.4]) * torch.log1p(z.exp())
    torch.testing.assert_close(loss.terms[0].value, expected.double(), rtol=1e-6, atol=1e-6)


def test_robust_wraps_any_link():
    z = torch.tensor([0.3, -2.0])
    got = Robust(0.2, Squared())(z, scores([0.0], [0.0]))
    torch.testing.assert_close(got, (0.8 * z**2 - 0.2 * z**2) / 0.6)


def test_a_field_may_be_a_margin_or_a_weight():
    s = scores([0.0, 0.0], [-1.0, -1.0], {"gap": torch.tensor([1.0, 0.0], dtype=torch.float64)})
    margin = Pairwise(SumLogp(), margin=Field("gap", 2.0), link=Squared())(s, {})
    assert margin.terms[0].value.tolist() == [1.0, 1.0]
    weight = Pairwise(SumLogp(), weight=Field("gap"), link=Squared())(s, {})
    assert weight.terms[0].value.tolist() == [1.0, 0.0]
    assert Pairwise(SumLogp(), weight=Field("gap")).needs.fields == {"gap"}


def test_T8_a_weight_multiplies_whole_pairs_and_carries_no_gradient_to_the_denominator():
    class Length:
        """A factor made of the scores themselves, as weighted methods use it."""

        needs = SumLogp().needs

        def __call__(self, chosen, rejected):
            return chosen.mean().exp().detach()

    draw = torch.Generator().manual_seed(0)
    for u, t in ((1, 5), (5, 5), (3, 7)):
        logp = (-torch.rand(2 * u, t, generator=draw, dtype=torch.float64)).requires_grad_()
        s = Scores(
            logp=logp,
            mask=torch.ones(2 * u, t, dtype=torch.bool),
            weight=torch.ones(u),
            roles={"chosen": torch.arange(u), "rejected": torch.arange(u) + u},
        )
        loss = Pairwise(SumLogp(), weight=Length(), link=Hinge(100.0))(s, {})
        factor = logp.detach()[:u].mean(1).exp()
        assert loss.terms[0].value.shape == (u,)
        assert (factor > 1e-2).all()
        (g,) = torch.autograd.grad(reduce(loss), logp)
        torch.testing.assert_close(g[:u], -(factor / u).unsqueeze(-1).expand(u, t))


def test_needs_add_up_over_parts():
    needs = Pairwise(SumLogRatio(), anchors=(Nll(role="target"),)).needs
    assert needs.roles == {"chosen", "rejected", "target"}
    assert needs.references == {"ref"}
    for reward in (SumLogp(), MeanLogp(), LogOdds()):
        assert Pairwise(reward).needs.references == frozenset()


def test_T49_chosen_and_rejected_are_reported_on_their_own_sides_and_ties_are_misses():
    metrics = Pairwise(SumLogp(), scale=2.0)(
        scores([-1.0, -5.0, -2.0], [-3.0, -4.0, -2.0]), {}
    ).metrics
    mean = {name: (t.value * t.weight).sum() / t.weight.sum() for name, t in metrics.items()}
    assert mean["logps/chosen"] == pytest.approx(-8 / 3)
    assert mean["logps/rejected"] == pytest.approx(-3)
    assert mean["rewards/chosen"] == pytest.approx(-16 / 3)
    assert mean["rewards/margins"] == pytest.approx(2 / 3)
    assert mean["rewards/accuracies"] == pytest.approx(1 / 3)


def test_T32_the_logistic_link_is_linear_far_out_and_not_infinite():
    z = torch.tensor([-120.0, -1e30, 120.0], requires_grad=True)
    value = Logistic()(z, scores([0.0], [0.0]))
    value.sum().backward()
    assert value[0] == 120
    assert torch.isfinite(value).all()
    assert torch.isfinite(z.grad).all()


def test_the_normaliser_divides_each_term_by_its_own_weights():
    value, weight = torch.tensor([1.0, 2.0, torch.nan]), torch.tensor([1.0, 3.0, 0.0])
    loss = Loss((Term(value, weight, 2.0), Term(torch.ones(2, 2), torch.zeros(2, 2))))
    assert reduce(loss) == pytest.approx(2 * 7 / 4)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_the_quantile_coupling_moves_all_mass_in_order(m, n, seed):
    draw = torch.Generator().manual_seed(seed)
    u, v = torch.randn(m, generator=draw).double(), torch.randn(n, generator=draw).double()
    a, b = (
        torch.rand(m, generator=draw).double() + 0.1,
        torch.rand(n, generator=draw).double() + 0.1,
    )
    i, j, share = quantile_coupling(u, a, v, b)
    assert (u[i].diff() >= 0).all()
    assert (v[j].diff() >= 0).all()
    torch.testing.assert_close(torch.zeros(m).double().index_add(0, i, share), a / a.sum())
    torch.testing.assert_close(torch.zeros(n).double().index_add(0, j, share), b / b.sum())
