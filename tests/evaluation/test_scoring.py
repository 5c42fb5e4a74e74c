import torch
from hypothesis import given
from hypothesis import strategies as some

from polyalign.evaluation.scoring import batches, log_probabilities
from tests.evaluation.fake import Letters

texts = some.lists(some.text("abcdefgh", max_size=12), min_size=1, max_size=12)


@given(texts, some.integers(1, 60))
def test_scores_do_not_depend_on_batches_and_keep_the_order(answers, budget):
    policy = Letters(a=5, end=2)
    rows = [policy.encode("xy" * (i % 3), text) for i, text in enumerate(answers)]
    many = log_probabilities(policy, rows, budget=budget)
    alone = [policy.law[row.steps] for row in rows]
    assert all(torch.equal(x, y) for x, y in zip(many, alone, strict=True))


@given(texts, some.integers(1, 60))
def test_each_row_is_in_one_batch_within_the_budget_unless_alone(answers, budget):
    policy = Letters()
    rows = [policy.encode("x" * (i % 4), text) for i, text in enumerate(answers)]
    parts = batches(rows, budget)
    assert sorted(i for part in parts for i in part) == list(range(len(rows)))
    for part in parts:
        assert len(part) == 1 or len(part) * max(rows[i].cost for i in part) <= budget


def test_progress_is_told_up_to_the_end():
    policy = Letters()
    told = []
    rows = [policy.encode("x", "abc")] * 5
    log_probabilities(policy, rows, budget=8, progress=lambda *note: told.append(note))
    assert told[0] == ("scoring", 0, 5)
    assert told[-1] == ("scoring", 5, 5)
