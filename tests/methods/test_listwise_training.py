"""Lists through the engine and from files: uneven lists, aspects, what is refused, what moves."""

import json
import math

import pytest
import torch

import polyalign
from polyalign.errors import DataError, PolyalignWarning
from polyalign.feedback.records import Scored
from polyalign.feedback.units import fault, make_units
from polyalign.methods import get
from polyalign.methods.build_index import declarations
from tests.engine.test_step import PROMPTS, answer, measure

OWN = [
    id for id, d in declarations().items() if d.family in ("direct_pointwise", "direct_listwise")
]
LISTED = [id for id in OWN if get(id)().stages[0].updates[0].objective.needs.roles == {"answers"}]


def lists(count, seed=0):
    """Lists of two to five answers with scores in [0, 1], some of them ties."""
    g = torch.Generator().manual_seed(seed)
    records = []
    for i in range(count):
        size = 2 + i % 4
        scores = (torch.randint(0, 5, (size,), generator=g) / 4).tolist()
        records.append(
            Scored(
                key=f"s{i}",
                prompt=i % PROMPTS,
                completions=tuple(answer(g) for _ in range(size)),
                scores=(*scores[:-1], scores[-1] + 0.1),
                weight=float(torch.rand(1, generator=g)) + 0.1,
            )
        )
    return records


@pytest.mark.parametrize("id", LISTED)
def test_uneven_lists_give_one_loss_and_gradient_however_a_step_is_cut(id):
    objective, records = get(id)().stages[0].updates[0].objective, lists(8)
    whole, gradient, count = measure(objective, records, None)
    assert count == 1
    assert any(bool((g != 0).any()) for g in gradient.values())
    for budget, order in ((1, None), (60, [3, 1, 0, 2, 7, 6, 5, 4])):
        part, other, count = measure(objective, records, budget, order)
        assert count > 1
        assert part.loss == pytest.approx(whole.loss, rel=1e-10)
        for key, value in gradient.items():
            torch.testing.assert_close(other[key], value, rtol=1e-9, atol=1e-12)
        for key, value in whole.metrics.items():
            assert part.metrics[key] == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_a_list_of_one_and_labels_out_of_bounds_are_refused_by_name():
    needs = get("lipo")(variant="point-sigmoid").stages[0].updates[0].objective.needs
    alone = Scored(key="alone", prompt=0, completions=((1,),), scores=(1.0,))
    large = Scored(key="large", prompt=0, completions=((1,), (2,)), scores=(1.0, 7.0))
    with pytest.raises(DataError, match="Example alone cannot be learnt from: it has one answer"):
        make_units([alone], [0], needs)
    with pytest.raises(DataError, match=r"Example large .*: its reward 7 lies outside \[0, 1\]"):
        make_units([large], [0], needs)
    assert fault(large, get("lipo")().stages[0].updates[0].objective.needs) is None


# From files, on a tiny language model


def says(text):
    return [{"role": "assistant", "content": text}]


def row(i):
    """A prompt with two to four answers, the first the best; sizes and lengths differ."""
    answers = ["good " * (1 + i % 3) + str(i), "bad " * (1 + i % 4), "so so", "bad bad"]
    size = 2 + i % 3
    return {
        "prompt": [{"role": "user", "content": f"Say {i}"}],
        "completions": [says(text) for text in answers[:size]],
        "scores": [1.0, 0.0, 0.5, 0.0][:size],
        "aspects": {"proposal": [-20.0, -15.0, -10.0, -12.0][:size]},
    }


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    return write(tmp_path_factory.mktemp("lists") / "scored.jsonl", [row(i) for i in range(8)])


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    rows = [
        {"prompt": r["prompt"], "chosen": r["completions"][0], "rejected": r["completions"][1]}
        for r in map(row, range(8))
    ]
    return write(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


def train(id, data, model, output, **options):
    return polyalign.train(
        id, model=str(model), data=str(data), output=output, batch=16, epochs=3, lr=5e-3,
        samples=0, save_every=0, threads=1, **options,
    )  # fmt: skip


RUNS = [(id, {}) for id in OWN if id != "kto"] + [
    ("nca", {"form": "pair"}),
    ("exo", {"form": "pref"}),
    ("brain", {"proposal": "given"}),
]


@pytest.mark.parametrize(("id", "options"), RUNS)
def test_it_trains_from_a_file_and_its_statistic_moves(
    id, options, scored, paired, tiny_llama, tmp_path
):
    listed = (get(id)(**options).feedback or get(id).feedback) is Scored
    made = train(id, scored if listed else paired, tiny_llama, tmp_path / "run", **options)
    seen = made.metrics
    assert len(seen) == 3
    assert all(math.isfinite(r["loss"]) for r in seen)
    assert seen[-1]["loss"] < seen[0]["loss"]
    if id == "dro":
        assert seen[-1]["loss/value"] < seen[0]["loss/value"]
        return
    apart = [r["rewards/chosen"] - r["rewards/rejected"] for r in seen]
    if id != "rrhf":  # whose pairs in order are left alone
        assert apart[-1] > apart[0]


def test_pairs_are_lists_of_two_to_a_listwise_method(paired, tiny_llama, tmp_path):
    made = train("infonca", paired, tiny_llama, tmp_path / "run", T=1e-3, beta=0.1)
    dpo = train("dpo", paired, tiny_llama, tmp_path / "dpo", beta=0.1)
    for one, other in zip(made.metrics, dpo.metrics, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_lists_of_one_are_refused_with_their_reason_and_training_goes_on(
    scored, tiny_llama, tmp_path
):
    lone = row(1) | {"completions": [says("alone")], "scores": [1.0], "aspects": {}}
    rows = [json.loads(line) for line in scored.read_text("utf-8").splitlines()]
    made = train("infonca", write(tmp_path / "mixed.jsonl", [*rows, lone]), tiny_llama,
                 tmp_path / "run")  # fmt: skip
    assert "it has one answer" in (made.folder / "rejects.jsonl").read_text("utf-8")
    told = "1 examples are left out; the first: it has one answer"
    assert told in (made.folder / "plan.json").read_text("utf-8")
    assert len(made.metrics) == 3
    with pytest.raises(DataError, match="No example can be learnt from; the last one: it has one"):
        train("infonca", write(tmp_path / "lone.jsonl", [lone]), tiny_llama, tmp_path / "none")


def test_thumbs_of_one_kind_are_warned_of(tiny_llama, tmp_path):
    rows = [
        {"prompt": r["prompt"], "completion": r["completions"][0], "label": True}
        for r in map(row, range(4))
    ]
    with pytest.warns(PolyalignWarning, match="All 4 examples are thumbs up"):
        train("bco", write(tmp_path / "up.jsonl", rows), tiny_llama, tmp_path / "run")


def test_labels_that_a_variant_cannot_read_stop_the_run_with_the_reason(
    scored, tiny_llama, tmp_path
):
    rows = [row(i) | {"scores": [9.0, 2.0, 3.0, 4.0][: 2 + i % 3]} for i in range(4)]
    with pytest.raises(DataError, match=r"its reward 9 lies outside \[0, 1\]"):
        train("lipo", write(tmp_path / "x.jsonl", rows), tiny_llama, tmp_path / "run",
              variant="point-sigmoid")  # fmt: skip


def test_held_out_scores_are_read_on_the_training_records_scale(scored, tiny_llama, tmp_path):
    """Held-out is training data here, so before the first step moves much both losses agree."""
    made = train("dro", scored, tiny_llama, tmp_path / "run", eval_data=str(scored), eval_every=1)
    first = next(r for r in made.metrics if "loss" in r)
    rows = [json.loads(x) for x in (made.folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    held = next(r for r in rows if r["split"] == "eval")
    assert held["eval_reward"] == pytest.approx(first["reward"], abs=1e-5)
    assert abs(held["eval_reward"]) < 1e-5
