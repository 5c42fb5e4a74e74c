"""How a declared claim is run: worlds, feedback, runs, and one expression over their figures.

A declaration names its runs (``a``, ``b``, …), each a method with options; or a list of options
(``grid``), or of ``lengths`` in steps, of which the one with the best ``by`` is taken. ``after``
is a run whose end this one starts from. Its ``measure`` is arithmetic over ``a.reward``, ``b.kl``
and the like, the names of :data:`.claims_measures.MEASURES`.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polyalign.errors import OptionError, nearest
from polyalign.feedback.records import Prompt, Record
from polyalign.methods import get
from polyalign.protocols import Policy
from polyalign.studies.claims_expression import asked_of, evaluated
from polyalign.studies.claims_feedback import of_kind, records_of
from polyalign.studies.claims_measures import MEASURES, Outcome
from polyalign.studies.claims_worlds import Desk, world_of
from polyalign.studies.lab import exact, train
from polyalign.worlds.tiny_lm import TinyLm

if TYPE_CHECKING:
    from polyalign.studies.claims import Claim


def figure(claim: Claim) -> tuple[list[float], dict[str, Any]]:
    """The claim's figure for each seed, and the mean of every measure that it uses."""
    tree = ast.parse(claim.measure, mode="eval").body
    asked = sorted(asked_of(claim.measure))
    for name, attribute in asked:
        if name not in claim.runs:
            raise OptionError(f"The measure names a run '{name}'.", nearest(name, claim.runs))
        if attribute not in MEASURES:
            raise OptionError(f"A run has no measure '{attribute}'.", nearest(attribute, MEASURES))
    values, parts = [], {f"{n}.{a}": [] for n, a in asked}  # type: ignore[var-annotated]
    for seed in range(claim.seeds):
        desk = world_of(claim.world, seed)
        records = records_of(desk, claim.feedback, seed)
        done = {n: outcome_of(claim, desk, records, claim.runs[n], seed)
                for n in {n for n, _ in asked}}  # fmt: skip
        known = {(n, a): MEASURES[a](done[n]) for n, a in asked}
        values.append(evaluated(tree, known))
        for (n, a), x in known.items():
            parts[f"{n}.{a}"].append(x)
    return values, {name: sum(xs) / len(xs) for name, xs in parts.items()}


def outcome_of(
    claim: Claim,
    desk: Desk,
    records: list[Record],
    run: Mapping[str, Any],
    seed: int,
    start: Policy | None = None,
) -> Outcome:
    """One run of a declaration; of a ``grid`` or of ``lengths`` the one with the largest ``by``."""
    given = dict(run)
    variants: list[dict[str, Any]] = []
    if "grid" in given:
        fixed = given.get("hyper", {})
        variants = [{"hyper": fixed | extra} for extra in given.pop("grid")]
    elif "lengths" in given:
        variants = [{"steps": steps} for steps in given.pop("lengths")]
    if variants:
        by = MEASURES[given.pop("by")]
        tried = [outcome_of(claim, desk, records, given | v, seed, start) for v in variants]
        return max(tried, key=by)
    before = given.pop("after", None)
    if before is not None:
        start = outcome_of(claim, desk, records, before, seed).run.policy
    unknown = set(given) - {"method", "hyper", "feedback", "steps", "batch", "lr"}
    if unknown:
        name = min(unknown)
        known = ["method", "hyper", "feedback", "steps", "batch", "lr", "grid", "lengths", "after"]
        raise OptionError(f"A run has no option '{name}'.", nearest(name, known))
    own = given.get("feedback")
    mine = records if own is None else records_of(desk, own, seed)
    hyper = dict(given.get("hyper", {}))
    declaration = get(given["method"])
    wanted = declaration(**hyper).feedback or declaration.feedback
    fitting = of_kind(mine, wanted, desk)
    steps = int(given.get("steps", claim.steps))
    batch = int(given.get("batch", 0)) or len(fitting)
    sampled = wanted is Prompt
    if sampled:
        batch = int(given.get("batch", 8 * len(fitting)))
    passes = steps if sampled else max(1.0, steps * batch / len(fitting))
    settings = exact(
        batch,
        1,
        float(given.get("lr", 0.1)),
        epochs=float(passes),
        seed=seed,
        max_steps=steps,
        clip=1.0 if isinstance(desk.world, TinyLm) else None,
    )
    done = train(
        given["method"],
        desk.world,
        fitting,
        hyper,
        settings=settings,
        steps=steps,
        policy=start or desk.policy(),
    )
    return Outcome(desk, done, mine)
