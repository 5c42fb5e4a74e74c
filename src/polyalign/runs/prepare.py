"""From a configuration to what a session needs: records of the right kind, a policy, a plan."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from polyalign.engine.storage import append_line
from polyalign.errors import DataError, OptionError, PolyalignWarning
from polyalign.feedback.records import Binary, Pair, Prompt, Record, Scored, kind_name
from polyalign.feedback.table import FeedbackSet
from polyalign.feedback.turns import EveryTurn
from polyalign.feedback.units import Members, fault, fields_of, slots
from polyalign.loops.references import scorable, whole_law
from polyalign.protocols import Policy
from polyalign.recipe import Declaration, Method
from polyalign.runs.config import TrainConfig
from polyalign.runs.plan import Survey
from polyalign.types import Needs

EMPTIED = "has no token left to learn from"
"""What is said of an answer that is empty or was emptied by max_length."""


def read_records(
    sources: Sequence[str], declaration: Declaration, config: TrainConfig
) -> tuple[Sequence[Record], list[Any], list[str]]:
    """Feedback of the kind that the method needs, the rows refused, and notes on what was done.

    Kinds that hold what is needed are converted (pairs to thumbs, to demonstrations, …) and a note
    says so. Raises :class:`DataError` for a kind that does not.
    """
    from polyalign.feedback import read

    found = read(list(sources), columns=config.columns or None, limit=config.limit)
    notes = [f"{', '.join(sources)}: {len(found)} examples, {found.format}."]
    if found.rejects:
        if config.rejects == "stop":
            first = found.rejects[0]
            raise DataError(
                f"{len(found.rejects)} rows are malformed; the first: {first.file}, row "
                f"{first.row}: "
                f"{first.reason}.",
                "Mend them with: polyalign data check FILE --fix OUT, or set rejects=drop.",
            )
        notes.append(f"{len(found.rejects)} malformed rows are left out (listed in rejects.jsonl).")
    kind, wanted = found.kind, declaration(**config.hyper).feedback or declaration.feedback
    if not len(found):
        raise DataError(
            f"{', '.join(sources)}: no usable example.", "Run: polyalign data check FILE"
        )
    if kind is wanted:
        turns = EveryTurn(found) if config.assistant == "all" else found
        return turns, list(found.rejects), notes
    from polyalign.feedback import AUTOMATIC, convert

    if (kind, wanted) not in AUTOMATIC:
        raise DataError(
            f"{declaration.id} learns from {kind_name(wanted)}, and {', '.join(sources)} holds "
            f"{kind_name(kind)}.",
            f"{_way(kind, wanted)} polyalign methods --feedback {kind_name(kind)}",
        )
    records = convert(found, wanted)
    notes.append(
        f"Taken as {kind_name(wanted)}: {len(records)} examples from {len(found)} "
        f"{kind_name(kind)}."
    )
    if not len(records):
        raise DataError(
            f"No {kind_name(wanted)} can be made of the data.", "Run: polyalign data check FILE"
        )
    return records, list(found.rejects), notes


def _way(kind: type[Record], wanted: type[Record]) -> str:
    """How to come from one kind to another, where a person has to choose."""
    from polyalign.feedback.conversion import targets

    if kind_name(wanted) not in targets(kind):
        return "Choose another method:"
    command = (
        "pair FILE"
        if (kind, wanted) == (Scored, Pair)
        else f"convert FILE --to {kind_name(wanted)}"
    )
    return f"Make them: polyalign data {command}; or choose another method:"


def refuse_unused(config: TrainConfig, declaration: Declaration, method: Method) -> None:
    """Raise :class:`OptionError` for an option that this method would not read."""
    sources = [source for stage in method.stages for source in stage.streams.values()]
    judged = any(source.kind == "rollouts" for source in sources)
    steps = [step for source in sources for step in source.steps]
    samples = judged or any(getattr(step, "samples", True) for step in steps)
    modules = any(stage.modules for stage in method.stages)
    paper = declaration.paper if config.paper_defaults and declaration.paper else {}
    epochs = config.epochs or paper.get("epochs", 1)
    laws = any(
        epochs * stage.share > 1 and whole_law(stage, name) and not stage.reference(name).every
        for stage in method.stages
        for name in {n for u in stage.updates for n in u.objective.needs.references}
    )
    read = {
        "judge": judged,
        "temperature": judged,
        "top_p": samples,
        "top_k": samples,
        "sampler": samples,
        "vllm_memory": config.sampler == "vllm",
        "module_lr": modules,
        "patience": config.early_stopping is not None,
        "reference_states": laws,
        "precompute_references": any(scorable(stage) for stage in method.stages),
    }
    mends = {
        "patience": "Add early_stopping, or leave it out.",
        "vllm_memory": "Add sampler=vllm, or leave it out.",
        "precompute_references": "It is for methods whose references stand still and are read as "
        "log-probabilities of given answers. Leave it out.",
        "reference_states": "It is for methods that read a constant reference's whole law at each "
        "step, as tdpo does, in more than one epoch. Leave it out.",
    }
    for name, used in read.items():
        if not used and getattr(config, name) != TrainConfig.model_fields[name].default:
            raise OptionError(
                f"{name}={getattr(config, name)!r} would have no effect on this run of "
                f"{declaration.id}.",
                mends.get(name, "Leave it out."),
            )


def survey(
    records: Sequence[Record],
    policy: Policy,
    method: Method,
    reject: Callable[[Record, str], None],
    progress: Callable[[str, int, int], None],
) -> tuple[list[int], Survey]:
    """Encode every example once: which can be trained on, and how long they are.

    An example with an answer that has no token left, or that the method cannot learn from, is
    refused with its reason, never dropped without a word. Returns the indices kept and the
    :class:`Survey`.
    """
    needs = _needs(method)
    wanted = needs.roles
    kept: list[int] = []
    tokens = context_tokens = longest = truncated = largest = 0
    encode = getattr(policy, "encoded", None)
    unfit: str | None = None
    labels: set[bool] = set()
    for index, record in enumerate(records):
        reason = fault(record, needs) or _lacking(record, needs, method)
        unfit = reason or unfit
        lengths, contexts, short = [], {}, False
        for role, context, completion in _rows(record, wanted):
            if encode is not None:
                coded = encode(context, completion)
                row = coded.row
                short = short or bool(coded.cut_context or coded.cut_steps)
            else:
                row = policy.encode(context, completion)
            if completion is not None and not bool(row.mask.any()):
                reason = f"the {role} answer {EMPTIED}"
            lengths.append(int(row.steps.shape[0]))
            contexts[row.context if isinstance(row.context, tuple) else role] = (
                row.cost - lengths[-1]
            )
        if reason is not None:
            reject(record, reason)
            continue
        kept.append(index)
        if isinstance(record, Binary):
            labels.add(record.label)
        truncated += short
        tokens += sum(lengths)
        context_tokens += sum(contexts.values())
        largest = max(largest, sum(lengths) + sum(contexts.values()))
        longest = max([longest, *(n + max(contexts.values()) for n in lengths)])
        if index % 256 == 0:
            progress("reading", index, len(records))
    if not kept and unfit is not None:
        raise DataError(
            f"No example can be learnt from; the last one: {unfit}.",
            "Look at the data, or choose another method or variant.",
        )
    if not kept:
        raise DataError(
            "No example is left: every answer is empty or is emptied by max_length.",
            "Raise max_length, or run: polyalign data check FILE",
        )
    if "label" in needs.fields and len(labels) == 1:
        warnings.warn(
            f"All {len(kept)} examples are thumbs {'up' if labels.pop() else 'down'}, so only one "
            "side is learnt.",
            PolyalignWarning,
            stacklevel=2,
        )
    dropped = len(records) - len(kept)
    done = Survey(len(kept), tokens, context_tokens, longest, truncated, dropped, largest)
    return kept, done


def _lacking(record: Record, needs: Needs, method: Method) -> str | None:
    """What is said of an example without a number that its file has to bring; data steps and
    credit make numbers themselves.
    """
    streams = [source for stage in method.stages for source in stage.streams.values()]
    if any(source.steps or source.kind != "records" for source in streams):
        return None
    missing = sorted(needs.fields - set(fields_of(record)))
    return f"it has no number in a column '{missing[0]}'" if missing else None


def chosen(records: Sequence[Record], indices: Sequence[int]) -> Sequence[Record]:
    """Some of the records; those on disk stay there."""
    if isinstance(records, FeedbackSet):
        return records.select(indices)
    return [records[i] for i in indices]


def slots_of(records: Iterable[Record], method: Method) -> Iterator[tuple[Any, Any]]:
    """The prompt and completion payloads of every row that the method scores by itself."""
    wanted = _needs(method).roles
    for record in records:
        for _, context, completion in _rows(record, wanted):
            yield context, completion


def _needs(method: Method) -> Needs:
    """What all updates of all stages need together."""
    total = Needs()
    for stage in method.stages:
        for update in stage.updates:
            total = total | update.objective.needs
    return total


def _rows(record: Record, wanted: AbstractSet[str]) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(record, Prompt):
        yield "own", record.prompt, None
        return
    seen = set()
    for role, slot in slots(record).items():
        if role in wanted:
            for context, completion in slot if isinstance(slot, Members) else (slot,):
                if id(completion) not in seen:
                    seen.add(id(completion))
                    yield role, context, completion


def data_fingerprint(records: Sequence[Record]) -> str:
    """A hash of the examples in order: their keys, and what the keys stand for."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(repr(record).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


class Rejected:
    """Takes refused examples, hands them on to ``then``, and tells how many there were and why."""

    def __init__(self, then: Callable[[Record, str], None] | None = None) -> None:
        self.then = then
        self.emptied = 0
        self.unfit: list[str] = []

    def __call__(self, record: Record, reason: str) -> None:
        if EMPTIED in reason:
            self.emptied += 1
        else:
            self.unfit.append(reason)
        if self.then is not None:
            self.then(record, reason)

    def told(self, max_length: int | None) -> list[str]:
        """A sentence for each kind of reason, without its full stop."""
        said = []
        if self.emptied:
            said.append(
                f"{self.emptied} examples are left out, as max_length={max_length} leaves them no "
                "answer"
            )
        if self.unfit:
            said.append(f"{len(self.unfit)} examples are left out; the first: {self.unfit[0]}")
        return said


def rejecter(file: Path) -> Callable[[Record, str], None]:
    """Writes refused examples whole, with their reason."""
    from polyalign.feedback.store import dump

    def reject(record: Record, reason: str) -> None:
        append_line(file, {"key": record.key, "reason": reason, "record": dump(record)})

    return reject
