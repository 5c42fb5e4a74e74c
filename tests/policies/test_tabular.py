"""Tables keep the promises that every policy makes, and their numbers are those of the tables."""

import math

import pytest
import torch

from polyalign.errors import ModelError, NeedsError, OptionError
from polyalign.policies.choosing import truncate
from polyalign.policies.tabular import BilinearPolicy, SequencePolicy, TabularPolicy
from polyalign.protocols import Sampling
from polyalign.types import Rows
from polyalign.worlds.loglinear import LogLinear
from polyalign.worlds.sequences import Sequences


def sequence_policy(eos=0, prompts=2, seed=0):
    world = Sequences.make(prompts, 3, 3, eos=eos, seed=seed)
    return world, SequencePolicy(world.logits, 3, eos)


def rows_of(policy, slots):
    return Rows.collate([policy.encode(x, y) for x, y in slots])


def test_a_sequence_policys_law_is_its_path_sums():
    world, policy = sequence_policy()
    torch.testing.assert_close(world.law(policy), world.start)


def test_a_bilinear_policys_law_is_the_softmax_of_its_form():
    world = LogLinear.make()
    policy = BilinearPolicy(world.gold, world.phi, world.psi)
    torch.testing.assert_close(world.law(policy), world.reward.log_softmax(-1))


def test_scores_do_not_depend_on_padding_or_company():
    _, policy = sequence_policy()
    alone = policy.score(rows_of(policy, [(1, (0,))]), frozenset({"entropy"}))
    mixed = policy.score(rows_of(policy, [(0, (2, 1, 0)), (1, (0,))]), frozenset({"entropy"}))
    torch.testing.assert_close(alone.logp[0], mixed.logp[1, :1])
    assert mixed.logp[1, 1:].eq(0).all()
    assert mixed.signals["entropy"][1, 1:].eq(0).all()


def test_signals_are_those_of_the_whole_law():
    logits = torch.tensor([[0.0, 1.0, -1.0]])
    policy = TabularPolicy(logits)
    other = TabularPolicy(torch.tensor([[0.5, 0.0, 0.2]])).freeze()
    p, q = logits[0].double().softmax(-1), other.parameter[0].softmax(-1)
    want = frozenset({"entropy", "kl(ref|policy)", "kl(policy|ref)", "log_collision", "max_prob"})
    signals = policy.score(rows_of(policy, [(0, 1)]), want, against={"ref": other}).signals
    expected = {
        "entropy": -(p * p.log()).sum(),
        "kl(ref|policy)": (q * (q / p).log()).sum(),
        "kl(policy|ref)": (p * (p / q).log()).sum(),
        "log_collision": (p**2).sum().log(),
        "max_prob": p.max(),
    }
    for name, value in expected.items():
        assert float(signals[name].detach()) == pytest.approx(float(value.detach())), name


def test_a_signal_of_two_laws_needs_the_live_reference():
    policy = TabularPolicy(torch.zeros(1, 3))
    with pytest.raises(NeedsError, match="reference"):
        policy.score(rows_of(policy, [(0, 1)]), frozenset({"kl(ref|policy)"}))


def test_samples_follow_the_law_and_report_its_log_probability():
    world, policy = sequence_policy(prompts=1)
    n = 4000
    drawn = policy.sample([0], n, Sampling(), list(range(n)))
    counts = torch.tensor([drawn.payloads.count(y) for y in world.completions]) / n
    assert float((counts - world.start[0].exp()).abs().max()) < 0.03
    index = [world.completions.index(y) for y in drawn.payloads]
    torch.testing.assert_close(drawn.logp.sum(-1), world.start[0, index])
    torch.testing.assert_close(drawn.old, drawn.logp)
    assert drawn.finished.all()


def test_a_row_depends_on_its_own_seed_only():
    _, policy = sequence_policy()
    both = policy.sample([0, 1], 2, Sampling(), [11, 12, 13, 14])
    one = policy.sample([1], 1, Sampling(), [14])
    assert both.payloads[3] == one.payloads[0]


@pytest.mark.parametrize(
    "how",
    [
        Sampling(temperature=0.5),
        Sampling(top_k=2),
        Sampling(top_p=0.6),
        Sampling(temperature=2.0, top_p=0.9, top_k=3),
    ],
)
def test_old_is_the_law_that_really_drew(how):
    policy = TabularPolicy(torch.tensor([[0.1, 1.4, -0.7, 0.8]]))
    n = 6000
    drawn = policy.sample([0], n, how, list(range(n)))
    law = truncate(policy.parameter[0].detach().unsqueeze(0), how)[0].exp()
    assert float(law.sum()) == pytest.approx(1.0)
    for y in range(4):
        share = drawn.payloads.count(y) / n
        assert share == pytest.approx(float(law[y]), abs=0.025)
    picked = law[torch.tensor(drawn.payloads)]
    torch.testing.assert_close(drawn.old[:, 0].exp(), picked)
    own = policy.parameter[0].log_softmax(-1)[torch.tensor(drawn.payloads)]
    torch.testing.assert_close(drawn.logp[:, 0], own.detach())


def test_top_p_keeps_the_fewest_choices_whose_mass_reaches_it():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    kept = truncate(logits, Sampling(top_p=0.79))[0].exp()
    torch.testing.assert_close(kept, torch.tensor([0.625, 0.375, 0.0]))


def test_temperature_zero_takes_the_most_probable_choice_with_certainty():
    policy = TabularPolicy(torch.tensor([[0.1, 1.4, -0.7]]))
    drawn = policy.sample([0], 5, Sampling(temperature=0.0), range(5))
    assert drawn.payloads == (1,) * 5
    assert drawn.old.eq(0).all()


def test_a_budget_of_steps_leaves_a_sequence_unfinished():
    _, policy = sequence_policy(eos=None)
    drawn = policy.sample([0], 6, Sampling(max_steps=2), range(6))
    assert not drawn.finished.any()
    assert {len(y) for y in drawn.payloads} == {2}


def test_a_frozen_policy_stays_where_it_was_and_takes_no_gradient():
    policy = TabularPolicy(torch.zeros(1, 2))
    frozen = policy.freeze()
    policy.load({"logits": torch.tensor([[3.0, 0.0]])})
    assert frozen.parameter.eq(0).all()
    assert not frozen.parameter.requires_grad
    assert float(policy.parameter.detach()[0, 0]) == 3.0


def test_wrong_prompts_steps_names_and_shapes_are_named():
    policy = TabularPolicy(torch.zeros(2, 3))
    with pytest.raises(ModelError, match="no prompt 7"):
        policy.encode(7, 0)
    with pytest.raises(ModelError, match="outside 0 … 2"):
        policy.encode(0, 3)
    with pytest.raises(ModelError, match="Did you mean logits"):
        policy.load({"logit": torch.zeros(2, 3)})
    with pytest.raises(ModelError, match="shape"):
        policy.load({"logits": torch.zeros(2, 2)})
    with pytest.raises(OptionError, match="value"):
        policy.build("valu", {})
    with pytest.raises(OptionError, match="init"):
        policy.build("value", {"inits": 1})
    with pytest.raises(OptionError, match="seed"):
        policy.sample([0], 2, Sampling(), [1])


def test_a_value_table_has_a_number_for_each_prefix_and_a_q_table_for_each_choice():
    _, policy = sequence_policy()
    rows = rows_of(policy, [(0, (2, 1, 0)), (1, (0,))])
    value, q = policy.build("value", {}), policy.build("q", {"init": 0.5})
    with torch.no_grad():
        value.table[0, :, 0] = torch.arange(13.0)
        q.table[0, 3, 1] = 9.0
    assert value(rows).tolist() == [[0.0, 3.0, 11.0], [0.0, 0.0, 0.0]]
    assert q(rows)[0].tolist() == [0.5, 9.0, 0.5]


def test_a_scalar_is_one_number_for_all_rows():
    _, policy = sequence_policy()
    scalar = policy.build("scalar", {"init": math.log(2)})
    assert float(scalar()) == pytest.approx(math.log(2))
    assert scalar(rows_of(policy, [(0, (0,)), (1, (0,))])).shape == (2,)
