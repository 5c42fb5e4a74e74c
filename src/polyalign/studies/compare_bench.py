"""What all cells of a comparison share: data, one base with its adapters, the base's own figures.

A bench is made once a process. Everything in it is a function of the setup, so cells may be
computed in any order, after an interruption, or by other processes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from polyalign.errors import DataError
from polyalign.evaluation.api import prompts_of
from polyalign.evaluation.generation import Samples, draw
from polyalign.evaluation.scoring import BUDGET, Progress, batches, silent
from polyalign.feedback import AUTOMATIC, convert, read
from polyalign.feedback.draws import identities
from polyalign.feedback.payloads import canonical
from polyalign.feedback.records import (
    Binary,
    Demonstration,
    Pair,
    Prompt,
    Record,
    Scored,
    kind_name,
)
from polyalign.feedback.splitting import split
from polyalign.feedback.statistics import answers_of
from polyalign.feedback.units import seed_of
from polyalign.judges.load import load_judge
from polyalign.methods import get
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.protocols import Judge, Policy, Sampling, Verdict
from polyalign.runs.config import TrainConfig, configure
from polyalign.runs.prepare import data_fingerprint
from polyalign.runs.start import start_policy
from polyalign.studies.compare_setup import Row, Setup
from polyalign.types import Rows


class Bench:
    """Data, base model and judge of one setup."""

    def __init__(self, setup: Setup, progress: Progress = silent) -> None:
        self.setup = setup
        self.progress = progress
        self._policy: LanguagePolicy | None = None
        self._starts: dict[int, dict[str, Tensor]] = {}
        if setup.train.get("threads"):
            torch.set_num_threads(int(setup.train["threads"]))

    # Data

    @cached_property
    def _sides(self) -> tuple[Sequence[Record], Sequence[Record]]:
        setup = self.setup
        columns = dict(setup.train.get("columns") or {}) or None
        found = read(list(setup.data), columns=columns, limit=setup.limit)
        if not len(found):
            raise DataError(
                f"{', '.join(setup.data)}: no usable example.", "Run: polyalign data check FILE"
            )
        if setup.eval_data:
            # Sources of different kinds (pairs, prompts, demonstrations) are read one by one.
            held = [r for source in setup.eval_data for r in read([source], columns=columns)]
            return found, held
        return split(found, setup.test)

    @cached_property
    def records(self) -> Sequence[Record]:
        """What is trained on: a smaller share is a part of every larger one."""
        every = self._sides[0]
        if self.setup.share >= 1:
            return every
        count = max(1, round(self.setup.share * len(every)))
        order = random.Random(0).sample(range(len(every)), len(every))
        return [every[i] for i in sorted(order[:count])]

    @cached_property
    def pairs(self) -> list[Pair]:
        """Held-out pairs, those that votes and the like make of their own included."""
        return held(self._sides[1], Pair)

    @cached_property
    def demonstrations(self) -> list[Demonstration]:
        """Held-out answers whose perplexity is measured: only what was given as such."""
        return [r for r in self._sides[1] if isinstance(r, Demonstration)]

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The held-out prompts that are answered, in one fixed random order.

        Prompts that were given as such are taken where there are any: they carry what a verifier
        needs.
        """
        own = [r for r in self._sides[1] if isinstance(r, Prompt)]
        every = prompts_of(own or self._sides[1])
        return random.Random(0).sample(every, len(every))[: self.setup.prompts]

    def tokens(self) -> int:
        """Tokens of all training answers with their prompts: what one pass computes."""
        policy = self.policy(self.setup.rows[1], self.setup.seeds[0])
        total = 0
        for record in self.records:
            prompt = getattr(record, "prompt", None)
            if prompt is not None:
                total += policy.encode(prompt, None).cost
                total += sum(
                    len(policy.encode(prompt, answer).steps) for answer in answers_of(record)
                )
        return max(total, 1)

    def fingerprints(self) -> dict[str, str]:
        """Hashes of what is trained on, held out, and of the model."""
        from polyalign.policies.language.models import resolve
        from polyalign.runs.plan import fingerprint

        trust = bool(self.setup.train.get("trust_remote_code"))
        return {
            "data": data_fingerprint(self.records),
            "held_out": data_fingerprint(self._sides[1]),
            "model": fingerprint(resolve(self.setup.model, trust_remote_code=trust)),
        }

    @cached_property
    def judge(self) -> Judge | None:
        """The chosen judge; prompts that carry a verifier need none."""
        if self.setup.judge is not None:
            return load_judge(self.setup.judge)
        prompts = self.prompts
        return load_judge("verifier") if prompts and "spec" in prompts[0].meta else None

    @property
    def pairwise(self) -> bool:
        """Whether the judge compares two answers instead of scoring one."""
        return bool(getattr(self.judge, "pairwise", False))

    def has(self) -> dict[str, bool]:
        """Which measures can be taken."""
        judged = self.judge is not None and bool(self.prompts)
        return {
            "score": judged and not self.pairwise,
            "win": judged,
            "ranking": bool(self.pairs),
            "ranking_mean": bool(self.pairs),
            "perplexity": bool(self.demonstrations),
        }

    def records_for(
        self, row: Row, shuffle: int | None = None, records: Sequence[Record] | None = None
    ) -> Sequence[Record]:
        """The training records (or some of them) in the kind that a row's method reads, the labels
        shuffled by a seed where one is given.

        Raises :class:`DataError` for a kind that the data do not hold.
        """
        declaration = get(row.method)
        wanted = declaration(**row.hyper).feedback or declaration.feedback
        records = self.records if records is None else records
        records = records if shuffle is None else shuffled(records, shuffle)
        kind = type(records[0])
        if kind is wanted:
            return records
        if (kind, wanted) not in AUTOMATIC:
            raise DataError(
                f"{declaration.id} learns from {kind_name(wanted)}, and "
                f"{', '.join(self.setup.data)} holds {kind_name(kind)}.",
                "Leave it out, or convert the data first: polyalign data convert FILE --to "
                f"{kind_name(wanted)}",
            )
        return convert(records, wanted)

    # The model

    def config(self, row: Row, seed: int) -> TrainConfig:
        """The configuration that a training run of this row would have."""
        name = row.method or self.setup.rows[1].method
        values = {
            "method": name,
            "model": self.setup.model,
            "data": list(self.setup.data) or ["-"],
            "output": ".",
            "seed": seed,
            "hyper": dict(row.hyper),
            "temperature": self.setup.temperature,
            "max_new_tokens": self.setup.max_new_tokens,
            **self.setup.train,
        }
        return configure(values, get(name))

    def policy(self, row: Row, seed: int) -> LanguagePolicy:
        """The policy as it is before training with ``seed``: one base, its new adapter drawn from
        the seed.
        """
        first = self.setup.seeds[0]
        if self._policy is None:
            self._policy = start_policy(self.config(row, first))
            self._starts[first] = _copied(self._policy.tensors())
        if seed not in self._starts:
            self._starts[seed] = _reseeded(self._starts[first], seed)
        self.trained.load(self._starts[seed])
        return self.trained

    @property
    def trained(self) -> LanguagePolicy:
        """The policy that was trained last."""
        assert self._policy is not None
        return self._policy

    def base(self) -> Policy:
        """The start as a constant; with adapters it shares the base of whatever is trained now.

        All seeds start at the same law: a new adapter changes nothing.
        """
        if self._policy is None:
            return self.policy(self.setup.rows[1], self.setup.seeds[0]).freeze()
        now = _copied(self._policy.tensors())
        self._policy.load(next(iter(self._starts.values())))
        frozen = self._policy.freeze()
        self._policy.load(now)
        return frozen

    @property
    def how(self) -> Sampling:
        """The law that held-out answers are drawn from."""
        return Sampling(temperature=self.setup.temperature, max_steps=self.setup.max_new_tokens)

    @cached_property
    def base_samples(self) -> Samples:
        """The base's answers to the held-out prompts, ``best_of`` each, drawn once a process."""
        return draw(
            self.base(), self.prompts, self.setup.best_of, self.how, progress=self.progress,
            what="sampling (base)",
        )  # fmt: skip

    @cached_property
    def known(self) -> KnownReference:
        """The base's log-probabilities of the training answers, computed once for all methods."""
        return KnownReference(self.base(), self.records)


def _copied(tensors: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone().cpu() for name, value in tensors.items()}


def _reseeded(start: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The start with its new adapter drawn anew, as `peft` draws one; others start as they are.

    A new adapter changes nothing, as its second factor is zero; only such a one is drawn.
    """
    fresh = any("lora_B" in name for name in start) and not any(
        bool(value.any()) for name, value in start.items() if "lora_B" in name
    )
    out = dict(start)
    for name in sorted(start) if fresh else ():
        if "lora_A" in name:
            draw = torch.Generator().manual_seed(seed_of(seed, "adapter", name))
            out[name] = nn.init.kaiming_uniform_(
                torch.empty_like(start[name]), a=5**0.5, generator=draw
            )
    return out


def held(records: Sequence[Record], kind: type[Any]) -> list[Any]:
    """The records of a kind, and what others give of it without a choice."""
    out: list[Any] = [r for r in records if isinstance(r, kind)]
    for other in {type(r) for r in records} - {kind}:
        if (other, kind) in AUTOMATIC:
            out += list(convert([r for r in records if type(r) is other], kind))
    return out


class KnownReference:
    """Log-probabilities of given answers under a constant policy, shared by whoever asks.

    They are computed in batches that depend on the data alone, when first asked for, so that the
    values do not depend on who asked first.
    """

    def __init__(self, policy: Policy, records: Sequence[Record]) -> None:
        self.policy = policy
        rows = [
            policy.encode(record.prompt, answer)
            for record in records
            if hasattr(record, "prompt")
            for answer in answers_of(record)
        ]
        rows = [row for row in rows if bool(row.mask.any())]
        self._parts = [[rows[i] for i in part] for part in batches(rows, BUDGET)]
        self._part: dict[str, int] = {}
        for number, part in enumerate(self._parts):
            for name in identities(Rows.collate(part)):
                self._part.setdefault(name, number)
        self._values: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, rows: Rows) -> Tensor | None:
        """[N, T] for rows that are all known, else None."""
        names = identities(rows)
        if any(name not in self._part for name in names):
            return None
        for number in sorted({self._part[name] for name in names if name not in self._values}):
            collated = Rows.collate(self._parts[number])
            logp = self.policy.score(collated).logp
            for i, name in enumerate(identities(collated)):
                self._values[name] = logp[i]
        first = self._values[names[0]]
        out = first.new_zeros(rows.mask.shape)
        for i, name in enumerate(names):
            values = self._values[name][: out.shape[1]]
            out[i, : len(values)] = values
        return out


class ShuffledJudge:
    """Another judge's scores, dealt out by chance: rewards that say nothing.

    Chance is a function of the seed and of what is judged, so an interrupted run sees the same.
    """

    def __init__(self, inner: Any, seed: int) -> None:
        self.inner = inner
        self.seed = seed

    def __call__(self, prompts: Any, completions: Any, meta: Any) -> Verdict:
        verdict = self.inner(prompts, completions, meta)
        if verdict.score is None:
            return Verdict(score=None, prefer=verdict.prefer, abstained=verdict.abstained)
        place = list(range(len(verdict.score)))
        said = [canonical(payload) for payload in (*prompts, *completions)]
        random.Random(seed_of(self.seed, "shuffled", *said)).shuffle(place)
        return replace(verdict, score=verdict.score[torch.tensor(place)])


def shuffled(records: Sequence[Any], seed: int) -> Sequence[Record]:
    """The records with labels that say nothing: the control that any method must not gain from.

    Pairs are swapped by a fair coin, thumbs and scores dealt out anew, demonstrations answer other
    prompts; prompts have no labels and stay (their judge is shuffled).
    """
    chance = random.Random(seed)
    first: Record = records[0]
    if isinstance(first, Pair):
        return [_swapped(r) if chance.random() < 0.5 else r for r in records]
    if isinstance(first, Scored):
        return [replace(r, scores=_dealt(r.scores, chance)) for r in records]
    if isinstance(first, Binary):
        labels = _dealt([r.label for r in records], chance)
        return [replace(r, label=label) for r, label in zip(records, labels, strict=True)]
    if isinstance(first, Demonstration):
        answers = _dealt([r.completion for r in records], chance)
        return [replace(r, completion=a) for r, a in zip(records, answers, strict=True)]
    if isinstance(first, Prompt):
        return records
    if (type(first), Pair) in AUTOMATIC:
        return shuffled(convert(records, Pair), seed)
    raise DataError(
        f"There is no way known to shuffle the labels of {kind_name(type(first))}.",
        "Convert the data to pairs first: polyalign data convert FILE --to pairs",
    )


def _swapped(pair: Any) -> Pair:
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)


def _dealt(values: Sequence[Any], chance: random.Random) -> tuple[Any, ...]:
    return tuple(chance.sample(list(values), len(values)))
