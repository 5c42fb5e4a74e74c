"""What a data step may ask: implicit rewards of frozen policies, samples, seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from polyalign.engine.cuts import cut
from polyalign.feedback.records import Pair
from polyalign.feedback.units import Unit, assemble
from polyalign.protocols import Policy

if TYPE_CHECKING:
    from polyalign.loops.session import Session

Which = Literal["current", "previous", "start"]


class Context:
    """A loop's side of a data step: everything here is without gradient.

    ``current`` is the policy at the start of the running stage, ``previous`` at the start of the
    stage before it; ``start``, the reference, is where training began.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.stage: int = session.position["stage"]

    def seed(self, purpose: str, *parts: object) -> int:
        """A seed that is a function of the run's seed, the purpose, the stage and ``parts``."""
        return self.session.seed(purpose, *parts)

    def policy(self, which: Which) -> Policy:
        """A frozen policy by name."""
        if which == "start":
            return self.session.start
        if which == "current":
            return self.session.references.at(self.stage)
        return self.session.references.at(max(self.stage - 1, 0))

    def encoder(self, name: str) -> Callable[[Sequence[str]], torch.Tensor]:
        """From texts to vectors [N, D]: by the policy training began with ("policy"), or by the
        sentence encoder of a folder.
        """
        from polyalign.policies.language.embedding import SentenceEncoder, states_mean

        if name != "policy":
            return SentenceEncoder(name)
        return lambda texts: states_mean(self.session.start, texts)

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made once in a run: later stages and a resumed run read it again."""
        found = self.session.hooks.get(name)
        if found is None:
            found = make()
            self.session.hooks.put(name, found)
        return found

    def log_probability(
        self, prompts: Sequence[Any], completions: Sequence[Any], policy: Which = "current"
    ) -> list[float]:
        """log pi(y|x), summed over steps, of each completion, in nats."""
        return self._summed(prompts, completions, [(1.0, self.policy(policy))])

    def implicit(
        self, prompts: Sequence[Any], completions: Sequence[Any], policy: Which = "current"
    ) -> list[float]:
        """log pi(y|x) - log ref(y|x), summed over steps, of each completion, in nats."""
        both = [(1.0, self.policy(policy)), (-1.0, self.session.start)]
        return self._summed(prompts, completions, both)

    def _summed(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        policies: Sequence[tuple[float, Policy]],
    ) -> list[float]:
        """The weighted sum of policies' log-probabilities of each completion."""
        out: list[float] = []
        size = max(1, self.session.settings.batch)
        for start in range(0, len(prompts), size):
            units = [
                Unit(str(i), {"own": (prompts[i], completions[i])})
                for i in range(start, min(start + size, len(prompts)))
            ]
            batch = assemble(units, self.session.policy.encode)
            values = torch.zeros(len(units), dtype=torch.float64)
            for part in cut(batch, self.session.settings.budget):
                rows = batch.take(part)
                with torch.no_grad():
                    steps = sum(sign * policy.score(rows.rows).logp for sign, policy in policies)
                assert isinstance(steps, torch.Tensor)
                total = torch.where(rows.rows.mask.to(steps.device), steps, 0.0).sum(-1)
                values[part] = total.double().cpu()[rows.roles["own"]]
            out += values.tolist()
            self.session.hooks.progress("scoring", len(out), len(prompts))
        return out

    def margins(self, pairs: Sequence[Pair], policy: Which = "current") -> list[float]:
        """Implicit reward of chosen minus rejected, nats, of each pair."""
        prompts = [pair.prompt for pair in pairs]
        chosen = self.implicit(prompts, [pair.chosen for pair in pairs], policy)
        rejected = self.implicit(prompts, [pair.rejected for pair in pairs], policy)
        return [c - r for c, r in zip(chosen, rejected, strict=True)]

    def sample(self, prompts: Sequence[Any], n: int, temperature: float = 1.0) -> list[list[Any]]:
        """``n`` completions of the current policy for each prompt."""
        how = replace(self.session.settings.sampling, temperature=temperature)
        size = max(1, self.session.settings.batch)
        out: list[list[Any]] = []
        for start in range(0, len(prompts), size):
            part = list(prompts[start : start + size])
            seeds = [self.seed("sample", start + i, j) for i in range(len(part)) for j in range(n)]
            with torch.no_grad():
                rollout = self.session.policy.sample(part, n, how, seeds)
            out += [list(rollout.payloads[i * n : (i + 1) * n]) for i in range(len(part))]
            self.session.hooks.progress("sampling", len(out), len(prompts))
        return out
