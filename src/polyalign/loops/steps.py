"""Steps: act in an environment, keep transitions in a replay, update after each action."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from polyalign.environments.base import Resumable, Transition, vector
from polyalign.environments.replay import Replay
from polyalign.errors import NeedsError, NumericsError
from polyalign.feedback.units import assemble
from polyalign.loops.epochs import evaluate, finish
from polyalign.loops.session import Session
from polyalign.types import Batch


def run(session: Session) -> None:
    """Act for ``settings.max_steps`` optimizer steps; the source's options shape the loop.

    ``warmup`` actions come from the starting policy before the first update, ``updates_per_step``
    optimizer steps follow each action, ``capacity`` transitions are kept. Raises
    :class:`NeedsError` without an environment or without ``max_steps``.
    """
    environment, settings, position = session.environment, session.settings, session.position
    if environment is None:
        raise NeedsError("This method learns by acting, and no environment was given.", "Pass one.")
    if settings.max_steps is None:
        raise NeedsError("Acting has no natural end.", "Set max_steps.")
    options = session.stage.streams["data"].options
    warmup, ratio = int(options.get("warmup", 0)), int(options.get("updates_per_step", 1))
    replay = Replay(int(options.get("capacity", 1_000_000)))
    state = _begin(session, replay)
    loop = session.loop_state
    while position["stage_step"] < settings.max_steps:
        state, measured = _act(session, replay, state, warmup)
        if len(replay) < max(warmup, 1):
            continue
        for k in range(ratio):
            batch = _batch(session, replay)
            row: dict[str, Any] = measured | session.train(batch, settings.max_steps)
            last = k == ratio - 1 or position["stage_step"] >= settings.max_steps
            if last:
                _keep(session, replay, state)
            finish(
                session,
                row,
                evaluate,
                epoch=float(loop["acted"]),
                steps=settings.max_steps,
                boundary=last,
            )
            if last:
                break


def _begin(session: Session, replay: Replay) -> tuple[float, ...]:
    """A fresh episode, or where a restored session was."""
    loop, environment = session.loop_state, session.environment
    if "replay" in loop:
        replay.load_state_dict(loop["replay"])
        if isinstance(environment, Resumable) and "environment" in loop:
            environment.load_state_dict(loop["environment"])
            return tuple(loop["state"])
        loop["return"] = 0.0
        return vector(environment.reset(seed=session.seed("environment", loop["acted"]))[0])
    loop.update({"acted": 0, "return": 0.0})
    return vector(environment.reset(seed=session.seed("environment"))[0])


def _keep(session: Session, replay: Replay, state: tuple[float, ...]) -> None:
    """What a resumed session needs of the environment and of experience."""
    loop, environment = session.loop_state, session.environment
    loop["replay"], loop["state"] = _Lazy(replay), list(state)
    if isinstance(environment, Resumable):
        loop["environment"] = dict(environment.state_dict())


class _Lazy(dict[str, Any]):
    """The replay's state, taken only when a checkpoint copies it."""

    def __init__(self, replay: Replay) -> None:
        super().__init__()
        self.replay = replay

    def __deepcopy__(self, memo: Any) -> dict[str, Any]:
        return self.replay.state_dict()


def _act(
    session: Session, replay: Replay, state: tuple[float, ...], warmup: int
) -> tuple[tuple[float, ...], dict[str, float]]:
    """One action: keep the transition; a finished episode reports its return."""
    loop = session.loop_state
    actor = session.start if loop["acted"] < warmup else session.policy
    with torch.no_grad():
        seeds = [session.seed("act", loop["acted"])]
        drawn = actor.sample([state], 1, session.settings.sampling, seeds)
    action = vector(drawn.payloads[0])
    observation, reward, terminated, truncated, _ = session.environment.step(action)
    if reward != reward:
        raise NumericsError(
            "The environment gave a reward that is not a number.", "Mend the environment."
        )
    after = vector(observation)
    replay.add(Transition(state, action, float(reward), after, bool(terminated), bool(truncated)))
    loop["acted"] += 1
    loop["return"] += float(reward)
    measured = {}
    if terminated or truncated:
        measured["rollout/ep_rew_mean"] = loop["return"]
        loop["return"] = 0.0
        after = vector(session.environment.reset()[0])
    return after, measured


def _batch(session: Session, replay: Replay) -> Batch:
    step = session.position["stage_step"]
    units = replay.sample(session.settings.batch, session.settings.seed, step)
    batch = assemble(units, session.policy.encode)
    seeds = torch.zeros(len(batch.rows), dtype=torch.long)
    for role, index in batch.roles.items():
        for key, row in zip(batch.keys, index.tolist(), strict=True):
            seeds[row] = session.seed("noise", step, key, role)
    return replace(batch, draws={"seed": seeds})
