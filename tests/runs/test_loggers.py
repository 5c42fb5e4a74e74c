import sys
import types

import pytest

from polyalign.engine.storage import read_lines
from polyalign.errors import OptionError, PolyalignWarning
from polyalign.runs.loggers import SINKS, Loggers, redact


class Recorder(types.ModuleType):
    """Stands in for a tracker's package and writes down what it is told."""

    def __init__(self, name, failing=False):
        super().__init__(name)
        self.calls = []
        self.failing = failing

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            if self.failing and name.startswith("log_m"):
                raise ConnectionError("no route")
            return self

        return call


def test_rows_go_to_metrics_jsonl_as_they_are(tmp_path):
    loggers = Loggers(tmp_path)
    rows = [
        {"step": 1, "split": "train", "loss": 0.5},
        {"step": 1, "split": "eval", "eval_loss": 1},
    ]
    for row in rows:
        loggers.log(row)
    loggers.close()
    assert read_lines(tmp_path / "metrics.jsonl") == rows


def test_a_resumed_run_has_no_row_twice(tmp_path):
    first = Loggers(tmp_path)
    for step in range(1, 8):
        first.log({"step": step, "loss": step})
    # The last checkpoint was at step 5; steps 6 and 7 come again.
    second = Loggers(tmp_path)
    second.truncate_after(5)
    for step in range(6, 9):
        second.log({"step": step, "loss": step})
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 9))


def test_an_unknown_logger_is_told_with_the_nearest_name(tmp_path):
    with pytest.raises(OptionError, match="no logger 'tensorbord'. Did you mean tensorboard"):
        Loggers(tmp_path, ["tensorbord"])


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_logger_that_is_not_installed_is_told_before_training(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(OptionError, match=f"logger {name} is not installed. pip install {name}"):
        Loggers(tmp_path, [name])


def test_tensorboard_gets_the_numbers(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loggers = Loggers(tmp_path, ["tensorboard"])
    loggers.log({"step": 3, "split": "train", "loss": 0.25, "rewards/margins": 1.5})
    loggers.close()
    events = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (event,) = events.Scalars("rewards/margins")
    assert (event.step, event.value) == (3, 1.5)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_trackers_get_numbers_and_a_configuration_without_secrets(tmp_path, monkeypatch, name):
    recorder = Recorder(name)
    monkeypatch.setitem(sys.modules, name, recorder)
    loggers = Loggers(tmp_path, [name], {"lr": 1e-4, "hub_token": "hf_abcdefghijklmnopqrstu"})
    loggers.log({"step": 2, "split": "train", "loss": 0.5, "kl": float("nan")})
    loggers.close()
    loggers.close()
    told = repr(recorder.calls)
    assert "'loss': 0.5" in told
    assert "0.0001" in told
    assert "abcdefghij" not in told
    assert "nan" not in told
    assert sum(call[0] in ("finish", "end_run") for call in recorder.calls) == 1


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(tmp_path, monkeypatch):
    recorder = Recorder("mlflow", failing=True)
    monkeypatch.setitem(sys.modules, "mlflow", recorder)
    loggers = Loggers(tmp_path, ["mlflow"])
    with pytest.warns(PolyalignWarning, match=r"mlflow failed .*\(no route\)"):
        loggers.log({"step": 1, "loss": 1.0})
    loggers.log({"step": 2, "loss": 1.0})
    assert sum(call[0] == "log_metrics" for call in recorder.calls) == 1
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 2


def test_the_configuration_offers_exactly_these_loggers():
    from polyalign.runs.config import TrainConfig

    described = str(TrainConfig.model_fields["loggers"].description)
    assert all(name in described for name in SINKS)
    given = {"method": "m", "model": "m", "data": "d", "output": "o"}
    assert TrainConfig.model_validate(given | {"loggers": list(SINKS)}).loggers == list(SINKS)
    with pytest.raises(OptionError, match="no logger 'wanb'.*Did you mean wandb"):
        TrainConfig.model_validate(given | {"loggers": ["wanb"]})


@pytest.mark.parametrize(
    "secret", ["hf_abcdefghijklmnopqrstu", "sk-abcdefghijklmnopqrstu", "ghp_abcdefghijklmnopqrst"]
)
def test_what_looks_like_a_secret_is_hidden_anywhere(secret):
    shown = redact({"model": f"x {secret} y", "data": [{"deep": secret}], "password": "short"})
    assert secret not in repr(shown)
    assert "short" not in repr(shown)


def test_ordinary_options_are_not_hidden():
    config = {"max_new_tokens": 128, "tokens": "none", "data": ["a@b.jsonl"], "lora": {"r": 8}}
    assert redact(config) | {"tokens": "none"} == config
