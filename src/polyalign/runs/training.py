"""Train: from a declaration and a configuration to a run folder with a model in it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from polyalign.engine import checkpoint, processes, sharding
from polyalign.engine.storage import append_line, write_json_atomic, write_text_atomic
from polyalign.errors import ModelError, OptionError, PolyalignError, RunError
from polyalign.evaluation.subject import open_beside
from polyalign.feedback.records import Record
from polyalign.judges.load import load_judge
from polyalign.loops import epochs, rounds
from polyalign.loops.run import run as run_loops
from polyalign.loops.session import Session, Settings
from polyalign.policies.language import quantised
from polyalign.policies.language.cache import TokenCache
from polyalign.policies.language.models import resolve
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.policies.language.sharded import whole_state
from polyalign.protocols import Judge, Sampling
from polyalign.recipe import Declaration, Method
from polyalign.runs.config import TrainConfig
from polyalign.runs.folder import Ended, FolderHooks, RunFolder, Silent, Watcher
from polyalign.runs.loggers import Loggers
from polyalign.runs.memory import budget_of
from polyalign.runs.plan import Facts, compare, fingerprint, make_plan, settings_of
from polyalign.runs.prepare import (
    Rejected,
    chosen,
    data_fingerprint,
    read_records,
    refuse_unused,
    rejecter,
    slots_of,
    survey,
)
from polyalign.runs.several import check
from polyalign.runs.start import parameters, start_policy

CACHED_FROM = 2000
"""Examples from which their tokens are kept on disk, in the user's cache, and mapped from there."""


@dataclass
class Prepared:
    """All that a session is made of."""

    declaration: Declaration
    config: TrainConfig
    method: Method
    policy: LanguagePolicy
    records: Sequence[Record]
    held_out: Sequence[Record]
    settings: Settings
    plan: dict[str, Any]
    judge: Judge | None


def prepare(
    declaration: Declaration, config: TrainConfig, watcher: Watcher, *, old_plan: Any = None
) -> Prepared:
    """Read and check everything, load the policy and make the plan; nothing is trained.

    Raises :class:`PolyalignError` for whatever would stop the run later.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    method = declaration(**config.hyper)
    if any(s.kind == "environment" for stage in method.stages for s in stage.streams.values()):
        raise ModelError(
            f"{declaration.id} learns by acting in an environment, which a language model does "
            "not do.",
            "Choose a method for language models: polyalign methods",
        )
    with processes.agreed():
        check(config, method)
        refuse_unused(config, declaration, method)
        records, refused, notes = read_records(config.data, declaration, config)
        folder = RunFolder(config.output)
        folder.create()
        writes = processes.rank() == 0
        if writes:
            (folder / "rejects.jsonl").unlink(missing_ok=True)
            for row in refused:
                append_line(
                    folder / "rejects.jsonl",
                    {
                        "file": str(row.file),
                        "row": row.row,
                        "field": row.field,
                        "reason": row.reason,
                    },
                )
        policy = start_policy(config)
        watcher.note(f"Model {config.model}: {parameters(policy) / 1e6:.0f} million parameters.")
        reject = Rejected(rejecter(folder / "rejects.jsonl") if writes else None)
        kept, measured = survey(records, policy, method, reject, watcher.progress)
        if len(kept) < len(records):
            notes += [
                f"{told} (listed in rejects.jsonl)." for told in reject.told(config.max_length)
            ]
            records = chosen(records, kept)
        if measured.truncated:
            notes.append(
                f"{measured.truncated} examples are cut at max_length={config.max_length}."
            )
        held_out: Sequence[Record] = ()
        for name in ("early_stopping", "eval_every"):
            if getattr(config, name) and not config.eval_data:
                raise OptionError(
                    f"{name}={getattr(config, name)} needs held-out data, and none are given.",
                    "Add --eval-data FILE (make one with: polyalign data split), or leave it out.",
                )
        if config.eval_data:
            held_out, _, more = read_records(config.eval_data, declaration, replace_limit(config))
            notes += [f"held out: {note}" for note in more]
            unusable = Rejected()
            usable, _ = survey(held_out, policy, method, unusable, watcher.progress)
            notes += [f"held out: {told}." for told in unusable.told(config.max_length)]
            held_out = chosen(held_out, usable)
        data = data_fingerprint(records)
        if len(records) >= CACHED_FROM:
            policy.tokens = TokenCache.open(
                policy.template, data, lambda: slots_of(records, method)
            )
        facts = Facts(
            parameters=parameters(policy),
            trainable=sum(p.numel() for p in policy.trainable().values()),
            hidden=int(getattr(policy.model.config, "hidden_size", 512)),
            layers=int(getattr(policy.model.config, "num_hidden_layers", 12)),
            model=fingerprint(resolve(config.model, trust_remote_code=config.trust_remote_code)),
            data=data,
            full=policy.peft is None,
            dtype=str(policy.trunk.dtype).removeprefix("torch."),
            device=str(policy.device),
            survey=measured,
            notes=[*notes, *([held] if (held := quantised.told(policy.model)) else [])],
            quantize=policy.quantize,
        )
    # Sharded weights are asked by all processes together, so all must have come so far.
    with processes.agreed():
        settings = settings_of(config, declaration, facts, config.micro or 1)
        room = budget_of(policy, config, method, facts, settings.batch, old_plan or {})
        if room.checkpointing:
            policy.trunk.checkpoint_layers()
        settings = replace(settings, budget=room.micro)
        plan = make_plan(
            config, declaration, method, settings, facts, room, processes.count(), records
        )
        if held_out and not settings.eval_every:
            settings = replace(settings, eval_every=max(1, plan["steps"] // 5))
        judge = load_judge(config.judge) if config.judge else _own_judge(records)
    return Prepared(declaration, config, method, policy, records, held_out, settings, plan, judge)


def replace_limit(config: TrainConfig) -> TrainConfig:
    """The configuration for held-out data, which are all used."""
    return config.model_copy(update={"limit": None})


def _own_judge(records: Sequence[Record]) -> Judge | None:
    """The verifier that prompts carry themselves, when they do."""
    if len(records) and "spec" in records[0].meta:
        return load_judge("verifier")
    return None


def train(
    declaration: Declaration,
    config: TrainConfig,
    *,
    watcher: Watcher | None = None,
    resume: bool = False,
    replan: bool = False,
) -> RunFolder:
    """Train and leave a complete run folder; with ``resume`` go on from its newest good checkpoint.

    Raises :class:`RunError` when the folder holds a run already (or none to resume), when the plan
    no longer fits, or when files cannot be written; :class:`Interrupted` after Ctrl-C.
    """
    watcher = watcher or Silent()
    folder = RunFolder(config.output)
    old = folder.plan() if resume and folder.started else None
    if folder.started and not resume:
        raise RunError(
            f"{folder.path} holds a run already.",
            f"Continue it with --resume {folder.path}, or choose another --output.",
        )
    if folder.finished:
        watcher.note(f"{folder.path} is finished already.")
        return folder
    ready = prepare(declaration, config, watcher, old_plan=old)
    with processes.agreed():
        if old is not None and not replan:
            compare(old, ready.plan)
    for note in ready.plan["notes"]:
        watcher.note(note)

    def write_plan() -> None:
        if old is not None and any(old.get(n) != ready.plan[n] for n in ("model", "dtype")):
            # Reference values that were kept belong to weights that are no longer the start.
            for name in ("refs", "laws"):
                shutil.rmtree(folder / "kept" / name, ignore_errors=True)
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text_atomic(folder / "config.yaml", text)
        write_json_atomic(folder / "plan.json", ready.plan)

    processes.first(write_plan)
    # One process writes the copies as it writes the record.
    copies = config.loggers if processes.rank() == 0 else ()
    loggers = Loggers(folder.path, copies, config.model_dump(mode="json"))
    hooks = FolderHooks(folder, config, ready.plan["steps"], watcher, loggers)
    session = Session(
        _maker(ready),
        ready.policy,
        ready.records,
        ready.settings,
        hooks=hooks,
        judge=ready.judge,
        eval_records=ready.held_out,
        opens=lambda name: open_beside(ready.policy, name, **_like(ready.config)),
        # An adapter's start is its base, and one in parts is exchanged in place.
        reopen=None if not ready.plan["full"] or config.fsdp else lambda: _start_again(ready),
    )
    with hooks.signals():
        if not _restore(session, hooks, folder, watcher):
            hooks.rewind(-1)
            session.open()
            if ready.held_out:
                _first_evaluation(session, hooks)
        try:
            run_loops(session, opened=True)
        except Ended:
            best = hooks.get("best")
            if best is not None:
                ready.policy.load(best)
            watcher.note(f"Stopped early: {config.early_stopping} no longer improves.")
    loggers.close()
    # A sharded policy is sampled and gathered by all processes together.
    together = sharding.in_lockstep(ready.policy)
    weights = whole_state(ready.policy) if together else None
    if together or processes.rank() == 0:
        _samples(session, folder, config, watcher)
    if processes.rank() == 0:
        _finish(session, folder, ready, weights)
    return folder


def _like(config: TrainConfig) -> dict[str, Any]:
    """How another model is loaded to stand beside the trained one."""
    names = ("dtype", "device", "max_length", "max_prompt_length", "quantize", "trust_remote_code")
    return {name: getattr(config, name) for name in names}


def _start_again(ready: Prepared) -> LanguagePolicy:
    """The policy as the run began, read from its model again; raises :class:`ModelError` where that
    is no longer what it was.
    """
    config = ready.config
    folder = resolve(config.model, trust_remote_code=config.trust_remote_code)
    if fingerprint(folder) != ready.plan["model"]:
        raise ModelError(
            f"{config.model} is no longer the model that this run began with.", "Restore it."
        )
    start = start_policy(config).settle()
    start.sampler = ready.policy.sampler  # one engine for both
    return start


def _maker(ready: Prepared) -> Any:
    """The method at a progress; made once where nothing is scheduled."""
    from polyalign.recipe import Schedule

    if any(isinstance(value, Schedule) for value in ready.method.hyper.values()):
        return lambda progress: ready.declaration(progress=progress, **ready.config.hyper)
    return lambda progress: ready.method


def _restore(session: Session, hooks: FolderHooks, folder: RunFolder, watcher: Watcher) -> bool:
    found = checkpoint.newest(folder / "checkpoints") if (folder / "checkpoints").is_dir() else None
    if found is None:
        return False
    tree, step = checkpoint.load(found)
    session.restore(tree)
    hooks.rewind(step)
    watcher.note(f"Continuing from step {step}.")
    return True


def _first_evaluation(session: Session, hooks: FolderHooks) -> None:
    sampled = session.stage.streams["data"].kind == "rollouts"
    measured = (rounds if sampled else epochs).evaluate(session)
    row = {f"eval_{name}": value for name, value in measured.items()}
    hooks.step(session, row | {"step": 0, "stage": 0, "epoch": 0.0, "tokens": 0, "split": "eval"})


def _samples(session: Session, folder: RunFolder, config: TrainConfig, watcher: Watcher) -> None:
    """Side-by-side answers of the start and of the trained policy, most likely tokens, to read."""
    prompts: dict[str, Any] = {}
    for record in [*session.eval_records, *session.records[: 8 * config.samples]]:
        prompt = getattr(record, "prompt", None) or getattr(record, "prompts", (None,))[0]
        if prompt is not None and len(prompts) < config.samples:
            prompts.setdefault(repr(prompt), (record.key, prompt))
    chosen = list(prompts.values())
    if not chosen:
        return
    condition = epochs.condition(session)
    if condition is not None:
        chosen = [(key, condition.ask(prompt)) for key, prompt in chosen]
        watcher.note(f"This policy is asked with a condition: {condition.told().strip()}")
    how = Sampling(temperature=0.0, max_steps=min(config.max_new_tokens, 96))
    sides: list[Sequence[Any]] = []
    try:
        start = session.start
    except (PolyalignError, OSError) as error:
        watcher.note(f"No samples are drawn, as the start cannot be read again: {error}")
        return
    for policy in (start, session.policy):
        watcher.progress("sampling", len(sides), 2)
        with torch.no_grad():
            drawn = policy.sample([p for _, p in chosen], 1, how, [0] * len(chosen))
        sides.append(drawn.payloads)
    if processes.rank() != 0:
        return
    (folder / "samples.jsonl").unlink(missing_ok=True)
    for (key, prompt), before, after in zip(chosen, *sides, strict=True):
        line = {"key": key, "prompt": prompt, "before": before, "after": after}
        append_line(folder / "samples.jsonl", line)


def _finish(session: Session, folder: RunFolder, ready: Prepared, weights: Any) -> None:
    """Write ``final/`` whole, then give it its name; ``weights`` where they were gathered."""
    making = folder.path / f".final-{os.getpid()}-{threading.get_ident()}"
    shutil.rmtree(making, ignore_errors=True)
    condition = epochs.condition(session)
    try:
        ready.policy.save(making, weights=weights)
        write_json_atomic(
            making / "polyalign.json",
            {
                "method": ready.declaration.id,
                "hyper": ready.plan["hyper"],
                "base": ready.config.model,
                "base_fingerprint": ready.plan["model"],
                "quantize": ready.plan["quantize"],
                "data": ready.plan["data"],
                "steps": session.position["step"],
                "tokens": session.position["tokens"],
                **({} if condition is None else {"condition": condition.to_json()}),
            },
        )
        shutil.rmtree(folder / "final", ignore_errors=True)
        making.rename(folder / "final")
    except OSError as error:
        raise RunError(
            f"The trained model cannot be written to {folder / 'final'} ({error.strerror}).",
            f"Free space or mend the permissions, then: polyalign train --resume {folder.path}",
        ) from None
    finally:
        shutil.rmtree(making, ignore_errors=True)


def open_run(path: Path) -> tuple[RunFolder, TrainConfig]:
    """A run folder and its configuration; raises :class:`RunError` where there is none."""
    folder = RunFolder(path)
    try:
        data = yaml.safe_load((path / "config.yaml").read_text("utf-8"))
        return folder, TrainConfig.model_validate(data | {"output": path})
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        brief = str(error).splitlines()[0]
        raise RunError(
            f"{path} is not a run folder that can be continued ({brief}).",
            "Give the folder that polyalign train --output made.",
        ) from None
