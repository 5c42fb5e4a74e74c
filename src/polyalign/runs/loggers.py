"""Where a run's rows go: metrics.jsonl always, TensorBoard, W&B, MLflow or Trackio when asked.

metrics.jsonl is the record; the others are copies. A copy that fails (no network, no account)
warns once and is left out, and the run goes on.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from polyalign.engine.storage import append_line, truncate_lines
from polyalign.errors import OptionError, PolyalignWarning, nearest


class Sink(Protocol):
    """A copy's side: numbers by name at a step, and an end."""

    def log(self, numbers: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class Loggers:
    """The loggers of one run: ``metrics.jsonl`` in ``folder`` and those in ``names``.

    ``config`` is shown by trackers that show configurations, without its secrets. Raises
    :class:`OptionError` for an unknown name or a package that is not installed, before training.
    """

    def __init__(
        self, folder: Path, names: Sequence[str] = (), config: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.file = self.folder / "metrics.jsonl"
        self.sinks: dict[str, Sink] = {}
        for name in names:
            if name not in SINKS:
                raise OptionError(f"There is no logger '{name}'.", nearest(name, SINKS))
        for name in names:
            try:
                self.sinks[name] = SINKS[name](self.folder, redact(config or {}))
            except ImportError:
                raise OptionError(
                    f"The logger {name} is not installed.",
                    f"pip install {name} (or polyalign[track]), or leave it out: "
                    "metrics.jsonl is always written.",
                ) from None

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row (``step``, ``split`` and numbers by name) to every log."""
        append_line(self.file, row)
        numbers = {
            name: float(x)
            for name, x in row.items()
            if isinstance(x, (int, float)) and name not in ("step", "stage") and math.isfinite(x)
        }
        for name in list(self.sinks):
            self._try(name, lambda sink: sink.log(numbers, int(row.get("step", 0))))

    def truncate_after(self, step: int) -> None:
        """Forget rows of metrics.jsonl after ``step``: a resumed run writes them again."""
        truncate_lines(self.file, lambda row: row.get("step", 0) <= step)

    def close(self) -> None:
        """End every log; calling it again does nothing."""
        for name in list(self.sinks):
            self._try(name, lambda sink: sink.close())
            self.sinks.pop(name, None)

    def _try(self, name: str, act: Callable[[Sink], None]) -> None:
        try:
            act(self.sinks[name])
        except Exception as error:  # trackers raise whatever their networks do
            del self.sinks[name]
            warnings.warn(
                f"The logger {name} failed and is left out from here on ({error}); "
                "metrics.jsonl has everything.",
                PolyalignWarning,
                stacklevel=3,
            )


class TensorBoard:
    """Event files in ``tensorboard/`` of the run folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, x in numbers.items():
            self.writer.add_scalar(name, x, step)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases; a resumed run continues its own."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.run = import_module("wandb").init(
            project="polyalign",
            name=folder.name,
            id=identity(folder),
            resume="allow",
            dir=str(folder),
            config=dict(config),
        )

    def log(self, numbers: dict[str, float], step: int) -> None:
        # Steps as a number of its own: W&B drops rows whose step it has passed.
        self.run.log({**numbers, "step": step})

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of MLflow, at the tracking server that its own variables name."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.mlflow = import_module("mlflow")
        self.mlflow.set_experiment("polyalign")
        self.mlflow.start_run(run_name=folder.name)
        self.mlflow.log_params({name: str(x)[:500] for name, x in config.items()})

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.mlflow.log_metrics(numbers, step=step)

    def close(self) -> None:
        self.mlflow.end_run()


class Trackio:
    """A run of Trackio."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.trackio = import_module("trackio")
        self.trackio.init(project="polyalign", name=folder.name, config=dict(config))

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.trackio.log({**numbers, "step": step})

    def close(self) -> None:
        self.trackio.finish()


SINKS: dict[str, Callable[[Path, Mapping[str, Any]], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def identity(folder: Path) -> str:
    """A short name of a run folder that stays the same when the run goes on."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]


_SECRET_NAME = re.compile(
    r"(^|[_\-.])(token|secrets?|passwords?|passwd|api[_-]?keys?|credentials?|auth)$", re.I
)
_SECRET_VALUE = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{12,})"
    r"|(?<=://)[^/\s@]+(?=@)"
)


def redact(value: Any) -> Any:
    """The same data with what looks like a secret hidden: by its name, or by how it looks.

    >>> redact({"api_key": "abc", "data": "https://me:pw@host/x", "max_tokens": 5})
    {'api_key': '(hidden)', 'data': 'https://(hidden)@host/x', 'max_tokens': 5}
    """
    if isinstance(value, Mapping):
        return {
            name: "(hidden)"
            if isinstance(x, str) and x and _SECRET_NAME.search(str(name))
            else redact(x)
            for name, x in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [redact(x) for x in value]
    if isinstance(value, str):
        return _SECRET_VALUE.sub("(hidden)", value)
    return value
