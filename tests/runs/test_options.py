"""An option that is accepted has an effect, and one that is not is an error with the
nearest
name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polyalign.api import declaration_of
from polyalign.errors import DataError, ModelError, OptionError, RunError
from polyalign.runs.config import TrainConfig, configure, rates
from polyalign.runs.folder import RunFolder, Silent
from polyalign.runs.training import prepare, train
from tests.runs.kit import config, final_bytes, rows_without_time, write_pairs

NUMBERS: dict[str, Any] = {
    "hyper": {"beta": 0.9},
    "epochs": 1.5,
    "max_steps": 1,
    "batch": 6,
    "lr": 1e-3,
    "optimizer": "rmsprop",
    "betas": (0.5, 0.9),
    "weight_decay": 0.5,
    "schedule": "constant",
    "warmup": 3,
    "clip": 0.01,
    "seed": 7,
    "full": False,
    "dtype": "bfloat16",
    "max_length": 36,
    "max_prompt_length": 8,
    "limit": 10,
}
"""Options that change the numbers of a training run."""

SHOWN: dict[str, tuple[Any, str]] = {
    "threads": (1, "threads"),
    "micro": (64, "micro"),
    "epochs": (2.0, "epochs"),
    "lr": (0.5, "lr"),
    "batch": (3, "batch"),
    "max_length": (64, "max_length"),
    "schedule": ("cosine", "schedule"),
}
"""Options that the plan shows under a name of its own."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> tuple[Path, Path, list]:
    folder = tmp_path_factory.mktemp("options")
    data = write_pairs(folder / "pairs.jsonl", 16)
    train(declaration_of("dpo"), config("dpo", tiny_llama, data, folder / "base", epochs=1))
    return folder, data, rows_without_time(folder / "base")


@pytest.mark.parametrize("name", NUMBERS)
def test_an_option_of_training_changes_what_is_trained(name, base, tiny_llama):
    folder, data, rows = base
    options = {"epochs": 1} | {name: NUMBERS[name]}
    if name == "hyper":
        options = {"epochs": 1, "beta": 0.9}
    run = train(declaration_of("dpo"), config("dpo", tiny_llama, data, folder / name, **options))
    assert rows_without_time(run.path) != rows
    assert final_bytes(run.path) != final_bytes(folder / "base")


@pytest.mark.parametrize("name", SHOWN)
def test_an_option_stands_in_the_plan(name, base, tiny_llama, tmp_path):
    _, data, _ = base
    value, key = SHOWN[name]
    ready = prepare(
        declaration_of("dpo"),
        config("dpo", tiny_llama, data, tmp_path / "p", **{name: value}),
        Silent(),
    )
    assert ready.plan[key] == value


@pytest.mark.parametrize(
    "options",
    [
        {"judge": "verifier"},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"top_k": 5},
        {"module_lr": 0.1},
        {"patience": 9},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_option_that_this_method_would_not_read_is_an_error(options, base, tiny_llama, tmp_path):
    _, data, _ = base
    made = config("dpo", tiny_llama, data, tmp_path / "p", **options)
    with pytest.raises(OptionError, match=f"{next(iter(options))}=.* would have no effect"):
        prepare(declaration_of("dpo"), made, Silent())


def test_memory_options_change_memory_and_not_the_loss(base, tiny_llama):
    folder, data, rows = base
    for name, options in {"ck": {"checkpointing": True}, "mi": {"micro": 40}}.items():
        made = config("dpo", tiny_llama, data, folder / name, epochs=1, **options)
        run = train(declaration_of("dpo"), made)
        for row, other in zip(rows, rows_without_time(run.path), strict=True):
            assert other["loss"] == pytest.approx(row["loss"], abs=2e-4)


def test_tokens_kept_on_disk_train_the_same_weights(base, tiny_llama, monkeypatch):
    folder, data, _ = base
    monkeypatch.setenv("POLYALIGN_CACHE", str(folder / "cache"))
    monkeypatch.setattr("polyalign.runs.training.CACHED_FROM", 1)
    made = config("dpo", tiny_llama, data, folder / "mapped", epochs=1)
    run = train(declaration_of("dpo"), made)
    assert list((folder / "cache").rglob("ids.bin"))
    assert final_bytes(run.path) == final_bytes(folder / "base")


def test_checkpoints_samples_and_evaluations_come_when_asked_for(base, tiny_llama):
    folder, data, _ = base
    made = config(
        "dpo", tiny_llama, data, folder / "often", epochs=2, save_every=1, keep=3, samples=3,
        eval_data=str(data), eval_every=2, loggers=["tensorboard"],
    )  # fmt: skip
    run = train(declaration_of("dpo"), made)
    assert len(list((run / "checkpoints").iterdir())) == 3
    assert len((run / "samples.jsonl").read_text().splitlines()) == 3
    evaluated = [row["step"] for row in run.metrics() if row["split"] == "eval"]
    assert evaluated == [0, 2, 4]
    assert list(run.path.rglob("events.out.tfevents*"))
    quiet = config("dpo", tiny_llama, data, folder / "seldom", epochs=1, save_every=0, samples=0)
    run = train(declaration_of("dpo"), quiet)
    assert not (run / "checkpoints").exists()
    assert not (run / "samples.jsonl").exists()


def test_early_stopping_ends_at_the_best_and_keeps_it(base, tiny_llama):
    folder, data, _ = base
    made = config(
        "dpo", tiny_llama, data, folder / "early", epochs=30, eval_data=str(data), eval_every=1,
        early_stopping="eval_logps/chosen", patience=2, lr=0.5,
    )  # fmt: skip
    run = train(declaration_of("dpo"), made)
    assert run.metrics()[-1]["step"] < 60
    assert run.finished


def test_a_schedule_moves_a_hyper_parameter(base, tiny_llama):
    folder, data, rows = base
    made = config("dpo", tiny_llama, data, folder / "moving", epochs=1, beta="0.1->2.0")
    run = train(declaration_of("dpo"), made)
    moved = rows_without_time(run.path)
    assert moved[0]["loss"] == rows[0]["loss"]
    assert moved[-1]["rewards/margins"] != rows[-1]["rewards/margins"]
    assert run.plan()["hyper"]["beta"] == "0.1->2"


def test_paper_defaults_are_the_papers(base, tiny_llama, tmp_path):
    _, data, _ = base
    made = configure(
        {"model": str(tiny_llama), "data": str(data), "output": tmp_path, "paper_defaults": True},
        declaration_of("dpo"),
    )
    plan = prepare(declaration_of("dpo"), made, Silent()).plan
    assert (plan["lr"], plan["batch"], plan["epochs"]) == (1e-6, 64, 1)


def test_the_rule_for_learning_rates_falls_with_size_and_is_higher_for_adapters():
    assert rates(135_000_000, full=True, supervised=False) == 1e-5
    assert rates(135_000_000, full=False, supervised=False) == 1e-4
    assert rates(7_000_000_000, True, False) < rates(1_000_000_000, True, False) < 1e-5
    assert rates(135_000_000, True, True) == 2e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bta": 1}, "Neither 'dpo' nor polyalign train has an option 'bta'.*Did you mean beta"),
        ({"learning_rate": 1}, "Neither.*'learning_rate'"),
        ({"lr": -1}, "lr=-1 is not allowed: input should be greater than 0"),
        ({"beta": "much"}, "beta='much' is not allowed"),
        ({"lora": {"rank": 3}}, "no option 'lora.rank'"),
        ({"schedule": "cosin"}, "schedule='cosin' is not allowed"),
        ({"epochs": 0}, "epochs=0 is not allowed"),
    ],
)
def test_wrong_options_are_one_sentence(options, message, tmp_path):
    values = {"model": "m", "data": "d", "output": tmp_path, **options}
    with pytest.raises(OptionError, match=message):
        configure(values, declaration_of("dpo"))


@pytest.mark.parametrize("name", ["model", "data", "output"])
def test_what_is_missing_is_named(name, tmp_path):
    values = {"model": "m", "data": "d", "output": tmp_path}
    del values[name]
    with pytest.raises(OptionError, match=f"'{name}' is missing.*--{name}"):
        configure(values, declaration_of("dpo"))


def test_every_option_is_described_or_plain():
    for name, info in TrainConfig.model_fields.items():
        assert info.description or name in (
            "optimizer", "betas", "weight_decay", "schedule", "seed", "lora", "dtype",
            "max_prompt_length", "patience", "loggers", "max_new_tokens", "temperature", "top_p",
            "top_k",
        ), name  # fmt: skip


def test_examples_that_a_length_limit_empties_are_listed_and_never_dropped_silently(
    tiny_llama, tmp_path
):
    """T14, T20: drop and count, never NaN."""
    data = tmp_path / "long.jsonl"
    rows = [
        {"prompt": "short", "chosen": "yes", "rejected": "no"},
        {"prompt": "x" * 400, "chosen": "yes", "rejected": "no"},
    ] * 4
    data.write_text("\n".join(map(json.dumps, rows)))
    made = config("dpo", tiny_llama, data, tmp_path / "run", max_length=64, max_prompt_length=None)
    run = train(declaration_of("dpo"), made)
    plan = run.plan()
    listed = (run / "rejects.jsonl").read_text().splitlines() if plan["dropped"] else []
    assert plan["records"] + len(listed) == len(rows)
    assert plan["dropped"] or plan["truncated"]
    assert all(row["loss"] == row["loss"] for row in run.metrics())


def test_malformed_rows_stop_the_run_when_asked_to(tiny_llama, tmp_path):
    data = tmp_path / "bad.jsonl"
    data.write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
        '{"prompt": "a", "chosen": 3, "rejected": "c"}\n'
    )
    made = config("dpo", tiny_llama, data, tmp_path / "run", rejects="stop")
    with pytest.raises(DataError, match="1 rows? .*malformed.*row 2"):
        prepare(declaration_of("dpo"), made, Silent())
    prepare(declaration_of("dpo"), made.model_copy(update={"rejects": "drop"}), Silent())
    assert "chosen" in (tmp_path / "run" / "rejects.jsonl").read_text()


def test_columns_map_names(tiny_llama, tmp_path):
    data = tmp_path / "named.jsonl"
    data.write_text('{"question": "a", "good": "b", "bad": "c"}\n' * 2)
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    made = config("dpo", tiny_llama, data, tmp_path / "run", columns=names)
    assert prepare(declaration_of("dpo"), made, Silent()).plan["records"] == 2
    with pytest.raises(DataError):
        prepare(declaration_of("dpo"), made.model_copy(update={"columns": {}}), Silent())


def test_assistant_says_which_turns_are_trained(tiny_llama, tmp_path):
    data = tmp_path / "turns.jsonl"
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "bb"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "dd"},
    ]
    data.write_text(json.dumps({"messages": turns}))
    rows = {}
    for which in ("last", "all"):
        made = config("sft", tiny_llama, data, tmp_path / which, assistant=which, epochs=1)
        rows[which] = train(declaration_of("sft"), made).metrics()[0]["loss"]
    assert rows["last"] != rows["all"]


def test_an_adapter_cannot_be_trained_whole(tiny_llama, tmp_path):
    data = write_pairs(tmp_path / "pairs.jsonl", 4)
    first = train(
        declaration_of("dpo"),
        config("dpo", tiny_llama, data, tmp_path / "a", full=False, epochs=1),
    )
    made = config("dpo", first / "final", data, tmp_path / "b", full=True)
    with pytest.raises(ModelError, match="is an adapter.*merge"):
        train(declaration_of("dpo"), made)
    again = train(declaration_of("dpo"), made.model_copy(update={"full": None}))
    assert again.metrics()[0]["loss"] == pytest.approx(0.6931472, abs=1e-6)


def test_a_folder_that_is_no_run_is_said_so(tmp_path):
    from polyalign.runs.training import open_run

    with pytest.raises(RunError, match="not a run folder"):
        open_run(tmp_path)
    assert not RunFolder(tmp_path).started


@pytest.mark.parametrize(("method", "column"), [("mmpo", "score_chosen"), ("osp", "strength")])
def test_a_dry_run_refuses_pairs_without_a_number_that_the_method_reads(
    method, column, tiny_llama, tmp_path
):
    from polyalign.api import plan

    data = write_pairs(tmp_path / "pairs.jsonl", 4)
    with pytest.raises(DataError, match=f"no number in a column '{column}'"):
        plan(method, model=str(tiny_llama), data=str(data))
