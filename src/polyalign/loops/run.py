"""Run a session's stages one after the other, each by the loop that its source asks for."""

from __future__ import annotations

from polyalign.errors import NeedsError
from polyalign.loops import epochs, rounds, steps
from polyalign.loops.session import Session

LOOPS = {"records": epochs.run, "rollouts": rounds.run, "environment": steps.run}


def run(session: Session, opened: bool = False) -> None:
    """Run what is left of a session; ``opened`` when its stage is open, by :meth:`Session.open` or
    :meth:`Session.restore`.

    Raises :class:`PolyalignError` for what the user can mend; the state at the last boundary
    stands.
    """
    for index in range(session.position["stage"], len(session.method.stages)):
        if not opened:
            session.position["stage"] = index
            session.position["stage_step"] = 0
            session.loop_state = {}
            session.open()
        opened = False
        kinds = {source.kind for source in session.stage.streams.values()}
        if len(kinds) != 1:
            raise NeedsError(
                f"Stage {index} mixes {' and '.join(sorted(kinds))} as sources.",
                "Use one kind a stage.",
            )
        LOOPS[kinds.pop()](session)
