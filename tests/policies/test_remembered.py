"""States of a constant reference on disk give the laws that the live reference gives."""

from __future__ import annotations

import json

import pytest
import torch

from polyalign.errors import OptionError, RunError
from polyalign.policies.language.adapters import LoraSpec
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.policies.language.remembered import Remembered
from polyalign.policies.language.signals import AGAINST
from tests.policies import tiny
from tests.policies.test_architectures import rows_of, stirred

LORA = LoraSpec(r=2, alpha=4)


def two(dtype=torch.float32):
    policy = tiny.policy("llama", dtype, LORA)
    reference = policy.freeze()
    return stirred(policy), reference


def signals(policy, reference, rows):
    found = policy.score(rows, AGAINST, against={"ref": reference})
    total = sum(v.sum() for v in found.signals.values())
    slopes = torch.autograd.grad(total, list(policy.trainable().values()))
    return {name: v.detach() for name, v in found.signals.items()}, slopes


@pytest.mark.parametrize(("dtype", "room"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_signals_and_gradients_are_those_of_the_live_reference(dtype, room, tmp_path):
    policy, reference = two()
    rows = rows_of()
    live, slopes = signals(policy, reference, rows)
    reference.remember(tmp_path, dtype)
    reference.score(rows_of([(7, (5, 9, 1)), (12, (4,))]))  # some of the rows, in another batch
    for _ in range(2):
        kept, again = signals(policy, reference, rows)
        for name, value in live.items():
            torch.testing.assert_close(kept[name], value, rtol=room, atol=room)
        for one, other in zip(again, slopes, strict=True):
            torch.testing.assert_close(one, other, rtol=10 * room, atol=10 * room)


def test_a_known_row_is_read_and_not_computed_also_by_the_next_process(tmp_path, monkeypatch):
    _, reference = two()
    rows = rows_of()
    reference.remember(tmp_path, "float32")
    before = reference.score(rows).logp
    _, again = two()
    again.remember(tmp_path, "float32")
    monkeypatch.setattr(LanguagePolicy, "_computed", None)
    assert torch.equal(again.score(rows).logp, before)
    order = torch.tensor([3, 0, 5])
    part = rows.take(order)
    steps = part.mask.shape[1]
    assert torch.equal(again.score(part).logp, before[order][:, :steps])


def test_damaged_and_cut_entries_are_computed_again(tmp_path):
    _, reference = two()
    rows = rows_of()
    reference.remember(tmp_path, "float32")
    before = reference.score(rows).logp
    data = bytearray((tmp_path / "states-0.bin").read_bytes())
    data[100] ^= 1
    (tmp_path / "states-0.bin").write_bytes(data[:-40])
    index = (tmp_path / "states-0.jsonl").read_text()
    (tmp_path / "states-0.jsonl").write_text(index + '{"row": "abc", "at"')
    _, again = two()
    again.remember(tmp_path, "float32")
    assert len(again.remembered.entries) == len(rows) - 1
    torch.testing.assert_close(again.score(rows).logp, before, rtol=0, atol=1e-6)
    assert len(again.remembered.entries) == len(rows)


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written.*Free space there"):
        Remembered(tmp_path / "file" / "inside", torch.float32)


# Runs.


def test_two_epochs_of_tdpo_have_the_losses_of_the_live_reference(
    tmp_path, tiny_llama, monkeypatch
):
    from polyalign.api import declaration_of
    from polyalign.runs.training import train
    from tests.runs.kit import config, rows_without_time, write_pairs

    data = write_pairs(tmp_path / "pairs.jsonl", 16)
    losses = {}
    for kind in (None, "float32"):
        options = {"reference_states": kind} if kind else {}
        run = tmp_path / str(kind)
        folder = train(declaration_of("tdpo"), config("tdpo", tiny_llama, data, run, **options))
        losses[kind] = [r["loss"] for r in rows_without_time(run) if r["split"] == "train"]
        assert folder.plan()["reference_states"] == kind
    assert losses["float32"] == pytest.approx(losses[None], abs=1e-5)
    assert losses[None][-1] < losses[None][0] - 0.01
    kept = tmp_path / "float32/kept/laws/stage-0/ref/states-0.jsonl"
    rows = [json.loads(line)["row"] for line in kept.read_text().splitlines()]
    assert len(rows) == len(set(rows)) > 16


@pytest.mark.parametrize(
    ("method", "options"), [("dpo", {}), ("tdpo", {"epochs": 1})], ids=["no law", "one epoch"]
)
def test_where_it_would_have_no_effect_it_is_refused(method, options, tmp_path, tiny_llama):
    from polyalign.api import declaration_of
    from polyalign.runs.folder import Silent
    from polyalign.runs.training import prepare
    from tests.runs.kit import config, write_pairs

    data = write_pairs(tmp_path / "pairs.jsonl", 8)
    settings = config(
        method, tiny_llama, data, tmp_path / "run", reference_states="float32", **options
    )
    with pytest.raises(OptionError, match="no effect.*as tdpo does"):
        prepare(declaration_of(method), settings, Silent())


def counted(monkeypatch):
    """The policies that computed states, in order."""
    plain, seen = LanguagePolicy._computed, []

    def computed(self, rows):
        seen.append(self)
        return plain(self, rows)

    monkeypatch.setattr(LanguagePolicy, "_computed", computed)
    return seen


def test_log_probabilities_and_laws_of_a_reference_come_from_one_pass(monkeypatch):
    policy, reference = two()
    rows = rows_of()
    logp, law = reference.score(rows).logp, reference.law(rows)[0]
    seen = counted(monkeypatch)
    with reference.once():
        assert torch.equal(reference.score(rows).logp, logp)
        assert torch.equal(reference.law(rows)[0], law)
        assert len(seen) == 1
        other = rows_of([(7, (5, 9, 1))])
        assert reference.score(other).logp.shape != logp.shape
        assert len(seen) == 2
    reference.score(rows)
    assert len(seen) == 3  # nothing is kept beyond
    with policy.once():
        policy.score(rows).logp.sum().backward()
        policy.score(rows).logp.sum().backward()
    assert len(seen) == 5  # a policy that trains computes as ever


def test_a_live_objective_asks_its_reference_once_a_batch(monkeypatch):
    """tdpo and oreo read the reference's log-probabilities and its whole laws."""
    from polyalign.engine.scoring import Cast, scores
    from polyalign.types import Batch, needs

    policy, reference = two()
    rows = rows_of()
    n = len(rows.mask)
    batch = Batch(rows, {"own": torch.arange(n)}, torch.ones(n), {}, tuple(map(str, range(n))))
    asked = needs("own", references=["ref"], signals=["kl(policy|ref)"])
    cast = Cast(policy, {"ref": reference}, {})
    seen = counted(monkeypatch)
    found = scores(cast, batch, asked, ("policy",), grad=True)
    assert seen == [reference, policy]
    monkeypatch.undo()
    assert torch.equal(found.refs["ref"], reference.score(rows).logp)
    whole = policy.score(rows, asked.signals, against={"ref": reference})
    assert torch.equal(found.signals["kl(policy|ref)"], whole.signals["kl(policy|ref)"])
