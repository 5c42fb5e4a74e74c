import torch

from polyalign.policies.counted import Counted, CountedJudge, Tokens, decisions
from polyalign.policies.tabular import TabularPolicy
from polyalign.protocols import Sampling, Verdict
from polyalign.types import Rows


def policy(tokens: Tokens) -> Counted:
    return Counted(TabularPolicy(torch.zeros(2, 3)), tokens)


def rows(of: Counted) -> Rows:
    return Rows.collate([of.encode(0, 1), of.encode(0, 2), of.encode(1, 0)])


def test_a_context_counts_once_and_every_step():
    tokens = Tokens()
    mine = policy(tokens)
    scored = mine.score(rows(mine))
    assert decisions(rows(mine)) == 2 + 3
    assert tokens == Tokens(policy=5)
    assert torch.equal(scored.logp, mine.inner.score(rows(mine)).logp)


def test_a_constant_made_from_it_counts_as_a_reference():
    tokens = Tokens()
    mine = policy(tokens)
    start = mine.freeze()
    start.freeze().score(rows(mine))
    start.score(rows(mine))
    assert tokens == Tokens(reference=10)


def test_two_laws_read_at_once_count_twice():
    tokens = Tokens()
    mine = policy(tokens)
    mine.score(rows(mine), frozenset({"kl(policy|ref)"}), None, {"ref": mine.freeze()})
    assert tokens == Tokens(policy=5, reference=5)


def test_sampled_answers_count_with_their_contexts():
    tokens = Tokens()
    mine = policy(tokens)
    mine.sample([0, 1], 2, Sampling(), [0, 1, 2, 3])
    assert tokens == Tokens(sampled=2 + 4)
    assert tokens.total == 6


def test_what_somebody_shares_is_charged_all_the_same():
    tokens = Tokens()
    mine = policy(tokens)
    shared = Counted(mine.inner, tokens, "reference", lambda r: torch.full(r.mask.shape, -7.0))
    assert float(shared.score(rows(mine)).logp[0, 0]) == -7.0
    assert tokens == Tokens(reference=5)


def test_a_module_that_reads_rows_is_counted():
    tokens = Tokens()
    mine = policy(tokens)
    mine.build("value", {})(rows(mine))
    assert tokens == Tokens(policy=5)


def test_a_judge_that_is_a_model_counts_what_it_reads():
    class Reader:
        def encode(self, prompt, completion):
            return [0] * len(completion)

        def __call__(self, prompts, completions, meta):
            return Verdict(score=torch.zeros(len(completions)))

    class Told(Reader):
        tokens_used = 0

        def __call__(self, prompts, completions, meta):
            self.tokens_used += 100
            return super().__call__(prompts, completions, meta)

    tokens = Tokens()
    CountedJudge(Reader(), tokens)(["p", "p"], ["abc", "de"], [{}, {}])
    assert tokens == Tokens(judge=5)
    CountedJudge(Told(), tokens)(["p"], ["abc"], [{}])
    assert tokens == Tokens(judge=105)
