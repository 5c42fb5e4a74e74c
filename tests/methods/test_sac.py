"""sac against its card, continuous and discrete."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from polyalign import objective
from polyalign.engine.scoring import Cast
from polyalign.engine.step import Engine
from polyalign.environments.base import Transition
from polyalign.errors import NumericsError, OptionError
from polyalign.feedback.units import assemble
from polyalign.methods import get
from polyalign.objectives.actor_critic import discrete_actor_loss
from polyalign.objectives.numbers import tanh_log_derivative
from polyalign.policies.control import GaussianPolicy
from tests.methods.by_hand import close

B, GAMMA, LOG_ALPHA, TARGET = 4, 0.9, -0.7, -2.0
ALPHA = np.exp(LOG_ALPHA)
DRAW = np.random.default_rng(0)
A = {
    "log_pi": DRAW.normal(0, 1, B),
    "log_pi_next": DRAW.normal(0, 1, B),
    "q": DRAW.normal(0, 1, (2, B)),
    "q_pi": DRAW.normal(0, 1, (2, B)),
    "q_next": DRAW.normal(0, 1, (2, B)),
    "reward": DRAW.normal(0, 1, B),
    "terminated": np.array([0, 1, 0, 0]),
    "log_alpha": LOG_ALPHA,
}


def only(*names):
    return {k: A[k] for k in (*names, "log_alpha")}


def test_the_critics_loss_and_gradient_are_the_cards():
    y = A["reward"] + GAMMA * (1 - A["terminated"]) * (
        A["q_next"].min(0) - ALPHA * A["log_pi_next"]
    )
    result = objective("sac", update="q1", gamma=GAMMA)(
        only("q", "q_next", "log_pi_next", "reward", "terminated")
    )
    close(result.per_unit, 0.5 * ((A["q"] - y) ** 2).sum(0))
    close(result.gradients["q"], (A["q"] - y) / B)
    assert set(result.gradients) == {"q", "log_alpha"}
    assert result.gradients["log_alpha"] == 0


def test_the_actors_loss_and_gradient_are_the_cards():
    result = objective("sac", update="policy")(only("log_pi", "q_pi"))
    close(result.per_unit, ALPHA * A["log_pi"] - A["q_pi"].min(0))
    close(result.gradients["log_pi"], ALPHA / B)
    close(result.gradients["q_pi"], -1.0 * (A["q_pi"] == A["q_pi"].min(0)) / B)
    assert result.gradients["log_alpha"] == 0


def test_the_temperatures_loss_and_gradient_are_the_cards():
    result = objective("sac", update="log_alpha", target_entropy=TARGET)(only("log_pi"))
    close(result.value, -(LOG_ALPHA * (A["log_pi"] + TARGET)).mean())
    close(result.gradients["log_alpha"], -(A["log_pi"] + TARGET).mean())
    assert (result.gradients["log_pi"] == 0).all()


@pytest.mark.parametrize(("entropy", "sign"), [(-3.0, -1), (-2.0, 0), (-1.0, 1)])
def test_the_temperature_rises_exactly_while_entropy_is_below_its_target(entropy, sign):
    g = objective("sac", update="log_alpha", target_entropy=-2.0)(
        log_pi=[-entropy] * 3, log_alpha=0.0
    ).gradients["log_alpha"]
    assert np.sign(g) == sign  # descent moves against the gradient


def test_all_three_losses_together_keep_their_gradients_apart():
    result = objective("sac", gamma=GAMMA, target_entropy=TARGET)(A)
    parts = [
        objective("sac", update="policy")(only("log_pi", "q_pi")),
        objective("sac", update="log_alpha", target_entropy=TARGET)(only("log_pi")),
    ]
    close(result.gradients["log_pi"], parts[0].gradients["log_pi"])
    close(result.gradients["log_alpha"], parts[1].gradients["log_alpha"])


def test_T44_a_time_limit_still_counts_what_lies_beyond_it():
    # One step of reward 1, truncated in a state worth 99: the target is 1 + 0.99 * 99.
    a = {"q": [[0.0], [0.0]], "q_next": [[99.0], [99.0]], "log_pi_next": [0.0], "reward": [1.0]}
    critic = objective("sac", update="q1", gamma=0.99)
    truncated = critic(a, log_alpha=0.0, terminated=[0]).metrics["q_target"]
    ended = critic(a, log_alpha=0.0, terminated=[1]).metrics["q_target"]
    close([truncated, ended], [1 + 0.99 * 99, 1.0])


def test_the_discrete_actor_is_least_at_the_softmax_of_the_critics():
    q = torch.tensor([[[1.0, -0.5, 0.3]], [[0.8, 0.1, 0.9]]], dtype=torch.float64)
    alpha = torch.tensor(0.4, dtype=torch.float64)
    best = torch.log_softmax(q.min(0).values / alpha, -1)
    logits = best.clone().requires_grad_()
    loss = discrete_actor_loss(torch.log_softmax(logits, -1), q, alpha).sum()
    loss.backward()
    close(loss.item(), -(alpha * torch.logsumexp(q.min(0).values / alpha, -1)).item())
    close(logits.grad.numpy(), 0, 1e-12)


def test_the_discrete_forms_are_the_cards():
    p = DRAW.dirichlet(np.ones(3), B)
    q = DRAW.normal(0, 1, (2, B, 3))
    a = {"log_pi": np.log(p), "q_pi": q, "log_alpha": LOG_ALPHA}
    soft = (p * (q.min(0) - ALPHA * np.log(p))).sum(1)
    close(objective("sac", update="policy")(a).per_unit, -soft)
    y = A["reward"] + GAMMA * (1 - A["terminated"]) * soft
    critic = only("q", "reward", "terminated") | {"q_next": q, "log_pi_next": np.log(p)}
    close(
        objective("sac", update="q1", gamma=GAMMA)(critic).per_unit,
        0.5 * ((A["q"] - y) ** 2).sum(0),
    )
    target = 0.98 * np.log(3)
    entropy = -(p * np.log(p)).sum(1)
    close(
        objective("sac", update="log_alpha", target_entropy=target)(
            log_pi=np.log(p), log_alpha=LOG_ALPHA
        ).gradients["log_alpha"],
        (entropy - target).mean(),
    )


def test_the_tanh_correction_is_the_direct_formula_and_finite_far_out():
    u = torch.linspace(-3, 3, 61, dtype=torch.float64)
    close(tanh_log_derivative(u).numpy(), torch.log(1 - torch.tanh(u) ** 2).numpy(), 1e-9)
    far = torch.tensor([-20.0, 20.0, -200.0, 200.0], requires_grad=True)
    tanh_log_derivative(far).sum().backward()
    assert torch.isfinite(tanh_log_derivative(far)).all()
    assert torch.isfinite(far.grad).all()


def test_what_is_missing_or_impossible_is_refused():
    with pytest.raises(OptionError, match="needs target_entropy"):
        objective("sac", update="log_alpha")(only("log_pi"))
    with pytest.raises(OptionError, match="no update that trains 'critic'"):
        objective("sac", update="critic")
    with pytest.raises(OptionError, match="alpha=-1 is not allowed"):
        objective("sac", alpha=-1)
    with pytest.raises(NumericsError, match="'terminated' holds more than 0 and 1"):
        objective("sac", update="q1")(dict(A, terminated=[0, 2, 0, 0]))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_T1_a_step_of_transitions_may_be_cut_in_micro_batches(number):
    policy = GaussianPolicy(2, 1, hidden=(4,), seed=1)
    stage = get("sac")().stages[0]
    modules = {
        name: policy.build("q", {"hidden": (8,), "seed": i})
        if "q" in name
        else policy.build("scalar", {})
        for i, name in enumerate(stage.modules)
    }
    units = [
        Transition((0.1 * i, 0.2), (0.3 * i,), 1.0 - i, (0.2, 0.1 * i), i == 2).unit(str(i))
        for i in range(5)
    ]
    batch = assemble(units, policy.encode)
    batch = replace(batch, draws={"seed": torch.arange(len(batch.rows))})
    update = stage.updates[number]
    whole, cut = (
        Engine(Cast(policy, {}, modules), budget).evaluate(update, batch, {})
        for budget in (None, 4)
    )
    close(whole.loss, cut.loss)
    close(whole.metrics[min(whole.metrics)], cut.metrics[min(cut.metrics)])
