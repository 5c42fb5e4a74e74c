"""What every evaluation is given beside a model and its data, and where it leaves what it finds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from polyalign.engine.storage import write_json_atomic
from polyalign.errors import DataError, OptionError, nearest
from polyalign.evaluation.scoring import BUDGET, Progress, silent
from polyalign.evaluation.subject import Subject, open_subject
from polyalign.feedback.records import Demonstration, Pair, Prompt, Record, kind_name
from polyalign.protocols import Judge, Policy


@dataclass(frozen=True, kw_only=True)
class Given:
    """What every evaluation is given.

    ``reference``: what the model is measured against (a run's default: its start). ``condition``:
    what a model that was trained on conditioned prompts is asked for, or "none" (default: what its
    folder says). ``samples``: answers drawn where the policy's own are needed. ``limit``: the first
    N examples. ``columns``: our column by yours. ``beta``: scale of the implicit reward (default:
    the run's). ``batch_tokens``: tokens scored at once. ``sampler``: "vllm" draws with vLLM.
    """

    reference: str | Path | Policy | None = None
    condition: str | float | None = None
    samples: int = 64
    max_new_tokens: int = 128
    limit: int | None = None
    columns: Mapping[str, str] | None = None
    beta: float | None = None
    seed: int = 0
    batch_tokens: int = BUDGET
    device: str | None = None
    dtype: str | None = None
    sampler: str | None = None
    trust_remote_code: bool = False
    save: bool = True
    progress: Progress = silent

    @staticmethod
    def of(given: Mapping[str, Any]) -> Given:
        """From options by name; raises :class:`OptionError` for one that there is not."""
        valid = {field.name for field in fields(Given)}
        for name in given:
            if name not in valid:
                raise OptionError(f"evaluate has no option '{name}'.", nearest(name, valid))
        made = Given(**given)
        if made.samples < 0:
            raise OptionError(f"samples={made.samples} is not allowed.", "samples >= 0.")
        return made

    @property
    def _load(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "dtype": self.dtype,
            "sampler": self.sampler,
            "trust_remote_code": self.trust_remote_code,
        }

    def subject(self, run_or_model: str | Path | Policy) -> Subject:
        """Who is evaluated."""
        found = open_subject(
            run_or_model, reference=self.reference, condition=self.condition, **self._load
        )
        return found if self.beta is None else replace(found, beta=self.beta)

    def beside(self, run_or_model: str | Path | Policy) -> Subject:
        """Another model, loaded alike and asked as it was trained to be."""
        return open_subject(run_or_model, **self._load)

    def records(self, data: Any) -> tuple[Sequence[Record], str, int]:
        """Records that can be evaluated, where they come from, how many rows were malformed."""
        if not isinstance(data, (str, Path)) and len(data) and isinstance(data[0], Record):
            records: Sequence[Record] = list(data)[: self.limit]
            source, rejected = "memory", 0
        else:
            from polyalign.feedback import read

            sources = [str(data)] if isinstance(data, (str, Path)) else [str(d) for d in data]
            columns = dict(self.columns) if self.columns else None
            found = read(sources, columns=columns, limit=self.limit)
            records, source, rejected = found, ", ".join(sources), len(found.rejects)
        if not len(records):
            raise DataError(f"{source}: no usable example.", "Run: polyalign data check FILE")
        kind = type(records[0])
        if kind in (Pair, Demonstration, Prompt):
            return records, source, rejected
        from polyalign.feedback.conversion import AUTOMATIC, convert

        if (kind, Pair) not in AUTOMATIC:
            raise DataError(
                f"{source} holds {kind_name(kind)}; evaluation reads pairs, demonstrations or "
                "prompts.",
                "Convert it: polyalign data convert FILE --to pairs (or polyalign data pair)",
            )
        return list(convert(records, Pair)), source, rejected


def told(records: Sequence[Record], source: str, rejected: int) -> dict[str, Any]:
    """The data in a few words."""
    kind = kind_name(type(records[0]))
    return {"source": source, "kind": kind, "records": len(records), "rejected": rejected}


def saved(folder: Path) -> dict[str, Any]:
    """What was measured of a run before; nothing where the file is not there or damaged."""
    try:
        found = json.loads((folder / "evaluation.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def kept(folder: Path, found: dict[str, Any]) -> None:
    """Keep what was measured in the run's folder."""
    write_json_atomic(folder / "evaluation.json", found)


def judge_of(spec: Any) -> Judge | None:
    """The judge of a name, a path or a callable; None for none."""
    if spec is None:
        return None
    from polyalign.judges.load import load_judge

    return load_judge(spec)
