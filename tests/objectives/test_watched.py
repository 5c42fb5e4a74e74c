"""Watching a law's concentration changes no loss."""

import pytest
import torch

from polyalign.methods import get
from polyalign.objectives import reduce
from polyalign.objectives.reduce import mean
from polyalign.objectives.watched import watched
from polyalign.types import Stateful
from tests.objectives.test_every_objective import evaluate, gradient, make


@pytest.mark.parametrize("id", ["dpo", "orpo", "tdpo", "aot"])
def test_a_watched_loss_is_the_loss_with_two_metrics_more(id):
    plain = get(id)().stages[0].updates[0].objective
    seen = watched(plain)
    scores = make(seen)
    assert torch.equal(reduce(evaluate(seen, scores)), reduce(evaluate(plain, scores)))
    assert torch.equal(gradient(seen, scores), gradient(plain, scores))
    more = evaluate(seen, scores).metrics
    assert set(more) - set(evaluate(plain, scores).metrics) == {"top_mass", "top_entropy"}
    chosen = scores["chosen"]
    weight = chosen.weight.unsqueeze(-1) * chosen.mask
    expected = (chosen.signals["top_mass"] * weight).sum() / weight.sum()
    assert float(mean(more["top_mass"])) == pytest.approx(float(expected))


def test_a_loss_with_a_statistic_of_the_step_keeps_it():
    kto = get("kto")().stages[0].updates[0].objective
    assert isinstance(watched(kto), Stateful)
    assert not isinstance(watched(get("dpo")().stages[0].updates[0].objective), Stateful)
    assert watched(kto).start().keys() == kto.start().keys()
