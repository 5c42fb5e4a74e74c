"""How a step is made to fit into memory: micro-batches, and activations computed again.

What a token keeps for the backward pass is counted on the loaded model. From it follow the
micro-batch and, where one example would not fit, activation checkpointing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyalign.errors import OptionError
from polyalign.runs.config import first

if TYPE_CHECKING:
    from polyalign.policies.language.policy import LanguagePolicy
    from polyalign.recipe import Method, Stage
    from polyalign.runs.config import TrainConfig
    from polyalign.runs.plan import Facts

ENOUGH = {"cpu": 768}
"""Tokens of a micro-batch, by device, above which little gets faster; elsewhere 16384."""

SHARE = 0.8
"""Of the memory that is free, what a run takes without being told."""

STATE = {"adamw_8bit": 2, "rmsprop": 4, "sgd": 0}
"""Bytes that an optimizer keeps of a trained number; elsewhere 8, two moments in float32."""

SPARE, APART = 1.6, 1.3
"""How often what the forward pass kept is taken at the peak, with what the backward pass needs and
gaps between blocks of memory; and where large blocks are kept apart (:mod:`polyalign.engine.heap`),
as measured (`python -m benchmarks.run memory`)."""

FIRST_STEP = 64 << 20
"""Bytes that libraries take for code and buffers at their first step, as measured."""


@dataclass(frozen=True)
class Costs:
    """Bytes, measured: used ``now`` with the model loaded, kept ``per_token``, the layers' inputs
    of a token (``inputs``), ``trainable`` numbers, what the output head holds at once, the
    optimizer's ``state`` of a trained number, and how many times what is kept is taken (``spare``).
    """

    now: int
    per_token: int
    inputs: int
    layers: int
    trainable: int
    head: int
    state: int = 8
    spare: float = SPARE

    def fixed(self) -> int:
        """What does not grow with the micro-batch: the model, gradients, averages, the head."""
        return self.now + (4 + self.state) * self.trainable + self.head

    def token(self, checkpointing: bool) -> int:
        """What a token of a micro-batch needs at the peak."""
        kept = self.per_token
        if checkpointing:
            kept = self.inputs + self.per_token // max(self.layers, 1)
        return int(self.spare * kept)

    def peak(self, tokens: int, checkpointing: bool) -> int:
        """With micro-batches of ``tokens``; a checkpoint is written from a copy of what trains."""
        return self.fixed() + max(tokens * self.token(checkpointing), 4 * self.trainable)


@dataclass(frozen=True)
class Budget:
    """Tokens of a micro-batch, whether activations are computed again, the bytes that this takes
    at the peak (estimated) and the limit that was kept.
    """

    micro: int
    checkpointing: bool
    bytes: int
    limit: int
    note: str | None = None


def budget(
    costs: Costs,
    limit: int,
    largest: int,
    step: int,
    *,
    device: str,
    micro: int | None = None,
    checkpointing: bool | None = None,
    told: bool = False,
) -> Budget:
    """The largest useful micro-batch within ``limit`` bytes.

    ``largest``: tokens of the largest example, ``step``: at most so many in an optimizer step.
    ``micro`` and ``checkpointing`` are kept where they are given; ``told`` says that a person set
    the limit. Raises :class:`OptionError` when such a limit cannot hold one example.
    """
    room = limit - costs.fixed()
    fits = room // costs.token(bool(checkpointing))
    if checkpointing is None:
        checkpointing = fits < (micro or largest)
        fits = room // costs.token(checkpointing)
    enough = ENOUGH.get(device.partition(":")[0], 16384)
    chosen = micro or max(min(fits, enough), largest)
    peak = costs.peak(min(max(chosen, largest), step), checkpointing)
    note = None
    if peak > limit:
        what = (
            f"A micro-batch of {min(max(chosen, largest), step)} tokens takes about "
            f"{show(peak)}, and {show(limit)} may be used."
        )
        if told:
            raise OptionError(what, "Raise memory, or lower max_length (or micro, if it is set).")
        note = f"{what} Lower max_length if memory runs out."
    return Budget(int(chosen), bool(checkpointing), int(peak), int(limit), note)


def parse(text: str) -> int:
    """Bytes from "6GB", "1.5GiB" or "800MB".

    >>> parse("2GiB"), parse("1.5 GB")
    (2147483648, 1500000000)
    """
    units = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    plain = text.replace(" ", "").upper()
    for unit, size in sorted(units.items(), key=lambda item: -len(item[0])):
        if plain.endswith(unit):
            try:
                value = float(plain.removesuffix(unit)) * size
            except ValueError:
                break
            if value > 0:
                return int(value)
    raise OptionError(f"memory={text!r} is not an amount of memory.", "Write it as 6GB or 800MB.")


def show(size: int) -> str:
    """A size to read.

    >>> show(3 << 29), show(50 << 20), show(1_436_000_000), show(2 << 40)
    ('1.5 GiB', '50 MiB', '1.34 GiB', '2048 GiB')
    """
    if size < 1 << 30:
        return f"{size / 2**20:.0f} MiB"
    return f"{size / 2**30:{'.3g' if size < 100 << 30 else '.0f'}} GiB"


def used(device: str) -> int:
    """Bytes that this process holds now on the device."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.memory_allocated(device))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * int(os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 1 << 30


def free(device: str) -> int:
    """Bytes that this process can use on the device beside what is used already."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    sharing = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    return min(_available(), _allowed()) // sharing


def _available() -> int:
    """Bytes that this machine can give."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    except (ValueError, OSError, AttributeError):
        return 4 << 30


GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
"""Where a container's limit stands and what is used of it, in both versions of control groups."""


def _allowed() -> int:
    """Bytes that this container, if it is one with a limit, may still take."""
    left = 1 << 62
    for limit, usage in GROUPS:
        try:
            left = min(left, max(int(limit.read_text()) - int(usage.read_text()), 0))
        except (OSError, ValueError):
            continue  # none of this version, or "max"
    return left


def limit_of(memory: str | None, device: str) -> int:
    """Bytes that the run may hold in all: what was said, else a share of what is free now."""
    return parse(memory) if memory else used(device) + int(SHARE * free(device))


def asked(stage: Stage, config: TrainConfig) -> bool:
    """Whether a stage asks the policy as it began, or another constant, while all weights train."""
    from polyalign.loops.references import names, scorable

    return bool(names(stage)) and not (first(config, True) and scorable(stage))


def copies(method: Method) -> tuple[int, int]:
    """Modules that hold a copy of what the policy trains, at most at a time, and how many of them
    compute in one pass with the policy.
    """
    held = computed = 0
    for stage in method.stages:
        modules = {
            name
            for name, module in stage.modules.items()
            if module.kind == "value" and module.options.get("trunk", "copy") == "copy"
        }
        trained = {n for update in stage.updates for n in update.trains} & modules
        held = max(held, len(modules))
        computed = max(computed, len(trained) if stage.together else 0)
    return held, computed


def served(config: TrainConfig, device: str, weights: int) -> int:
    """Bytes that another sampler takes beside the policy: its share of a GPU, or what it holds."""
    if config.sampler == "own":
        return 0
    if device.startswith("cuda"):
        import torch

        return int(config.vllm_memory * torch.cuda.mem_get_info(device)[1])
    return weights + (1 << 30)


def budget_of(
    policy: LanguagePolicy,
    config: TrainConfig,
    method: Method,
    facts: Facts,
    batch: int,
    old: Mapping[str, Any],
) -> Budget:
    """The micro-batch that fits, by what the loaded model keeps; that of ``old`` stays."""
    from polyalign.engine import heap, processes
    from polyalign.policies.language.kept import bytes_per_token
    from polyalign.policies.language.logprobs import buffers

    per_token = bytes_per_token(policy)
    checkpointing = config.checkpointing
    if checkpointing is None:
        checkpointing = old.get("checkpointing")
    updates = [update for stage in method.stages for update in stage.updates]
    # What is asked while it trains is held whole; an adapter's start shares the base.
    weights = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    vocabulary = int(policy.trunk.config.vocab_size)
    parts = processes.count() if config.fsdp else 1
    held = facts.full and (config.fsdp or any(asked(stage, config) for stage in method.stages))
    beside, computed = copies(method)
    costs = Costs(
        now=used(facts.device)
        + FIRST_STEP
        + served(config, facts.device, weights)
        + held * weights // parts
        + beside * 4 * facts.trainable,
        per_token=(1 + computed) * per_token,
        inputs=(1 + computed) * facts.hidden * facts.layers * policy.model.dtype.itemsize,
        layers=facts.layers,
        trainable=(1 + beside) * facts.trainable // parts,
        head=buffers(facts.device, vocabulary, any(u.objective.needs.signals for u in updates)),
        state=STATE.get(config.optimizer, 8),
    )
    # It costs time, so it is done where memory is short.
    if (config.memory or checkpointing) and facts.device == "cpu" and heap.apart():
        costs = replace(costs, spare=APART)
    largest = facts.survey.largest
    return budget(
        costs,
        limit_of(config.memory, facts.device),
        largest,
        min(batch * largest, facts.survey.tokens + facts.survey.context_tokens),
        device=facts.device,
        micro=config.micro or old.get("micro"),
        checkpointing=checkpointing,
        told=config.memory is not None,
    )
