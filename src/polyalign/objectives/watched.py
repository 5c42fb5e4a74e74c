"""A loss with what evaluation watches beside it: how concentrated the law is on good answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from polyalign.types import Loss, Needs, Objective, Scores, State, Stateful, needs


@dataclass(frozen=True)
class Watched:
    """The same loss, with ``top_mass`` and ``top_entropy`` of the chosen answers' steps as metrics.

    Source of the two: arXiv 2410.11677.
    """

    loss: Objective

    @property
    def needs(self) -> Needs:
        return self.loss.needs | needs("chosen", signals=["top_mass", "top_entropy"])

    def __call__(self, scores: Scores, state: State) -> Loss:
        found = self.loss(scores, state)
        chosen = scores["chosen"]
        return replace(
            found,
            metrics={
                **found.metrics,
                **{name: chosen.per_step(chosen.signals[name].detach()) for name in NAMES},
            },
        )


NAMES = ("top_mass", "top_entropy")


@dataclass(frozen=True)
class StatefulWatched(Watched):
    """The same for a loss with a statistic over the whole step."""

    loss: Stateful  # type: ignore[assignment]

    def start(self) -> State:
        return self.loss.start()

    def before(self, scores: Scores, state: State) -> State:
        return self.loss.before(scores, state)


def watched(loss: Objective) -> Watched:
    """A loss with the two metrics beside its own."""
    return StatefulWatched(loss) if isinstance(loss, Stateful) else Watched(loss)
