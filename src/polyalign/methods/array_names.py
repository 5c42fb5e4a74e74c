"""What the numeric entry point calls the arrays of a loss, read off what the loss needs.

Axes: B examples, T steps, U lists, K members of a list, V choices, D features.
"""

from __future__ import annotations

from collections.abc import Iterable

from polyalign.types import Needs, signal

SUFFIX = {
    "chosen": "_w",
    "rejected": "_l",
    "target": "_t",
    "gold": "_g",
    "source_chosen": "_s",
    "own": "",
    "mismatched": "K",
    "own_11": "_11",
    "own_12": "_12",
    "own_21": "_21",
    "own_22": "_22",
}
"""What stands behind the arrays of a role."""

ALIASES = {
    "reward": ("r", "R", "psi"),
    "proposal": ("lq",),
    "p_desirable": ("p",),
    "score_chosen": ("s_w",),
    "score_rejected": ("s_l",),
    "strength": ("p",),
}
"""What the cards call some of the examples' numbers."""

STEPS = {
    "log_collision": ("log_collision", "log sum_v p(v)^2 of the law at each step [B, T]"),
    "max_prob": ("max_prob", "the largest probability at each step [B, T]"),
    "steps": ("tokens", "which token each step is [B, T]"),
    "stop_word": ("stop_word", "1 where a step is a function word [B, T]"),
    "js(policy|ref)": ("js", "the Jensen-Shannon divergence at each step [B, T]"),
    "tv(policy|ref)": ("tv", "the total variation between the laws at each step [B, T]"),
    "log_overlap(policy|ref)": ("log_overlap", "log sum_v p(v)^a q(v)^(1-a) at each step [B, T]"),
}
"""Array by signal, without the side's suffix; those of two laws carry the policy's gradient."""

DRAWS = {
    "subset": ("u", "random numbers in [0, 1) that say which steps stay [B, T]"),
    "subset/reference": ("v", "the reference's own random numbers in [0, 1) [B, T]"),
}
"""Array by random number, without the side's suffix."""

SUMS = {
    "kl(ref|policy)": ("D", "KL(ref || policy) of the whole law, summed over the answer"),
    "kl(policy|ref)": ("kl", "KL(policy || ref) of the whole law, summed over the answer"),
}
"""Array by signal that may be given as sums, without the side's suffix."""

Told = list[tuple[str, str, str]]


def told(needs: Needs, imitated: Iterable[str] = ()) -> Told:
    """The arrays of a loss: names, axes, meaning; nothing where it reads transitions.

    ``imitated`` are roles whose likelihood alone counts, so that they have no reference.
    """
    roles = sorted(needs.roles | needs.statistics, key=list(SUFFIX).index) if _known(needs) else []
    if not roles and "answers" not in needs.roles:
        return []
    lists = "answers" in needs.roles
    axes = "U, K" if lists else "B"
    sides = [""] if lists else [_suffix(role, roles) for role in roles]
    anchored = [_suffix(role, roles) for role in roles if role in set(imitated)]
    by_step = bool(needs.draws) or any(signal(name)[0] in STEPS for name in needs.signals)
    out: Told = []
    policy, reference = "the policy's log-probabilities", "the reference's"
    compared = [s for s in sides if s not in anchored]
    if not by_step:
        out.append((_all("lp", sides), f"[{axes}]", f"{policy}, summed over an answer"))
        if needs.references:
            out.append((_all("rf", compared), f"[{axes}]", reference))
        out.append((_all("n", sides), f"[{axes}]", "lengths, where they count"))
    beside = f", {_all('ref', compared)}" if needs.references else ""
    steps = f"{_all('logp', sides)}{beside}, {_all('mask', sides)}"
    single = "log-probabilities at single steps, and which steps count"
    out.append((steps, f"[{axes}, T]", single if by_step else "or: the same by step"))
    laws = f"{_all('logits', sides)}, {_all('tokens', sides)}"
    out.append((laws, f"[{axes}, T, V]", "or: the whole laws, and [.., T] which token was taken"))
    if needs.references and not lists:
        out.append((_all("ref_logits", compared), f"[{axes}, T, V]", "the reference's laws"))
    for table in (SUMS, STEPS):
        for name in sorted(needs.signals):
            short, why = table.get(signal(name)[0], ("", ""))
            if short:
                shape = "[B, T]" if table is STEPS else "[B]"
                out.append((_all(short, sides), shape, why.removesuffix(" [B, T]")))
    for name in sorted(needs.draws):
        out.append((_all(DRAWS[name][0], sides), "[B, T]", DRAWS[name][1].removesuffix(" [B, T]")))
    if "value" in needs.signals:
        out.append(("value", "[B, T]", "the value network's numbers, or [B]"))
    if needs.old:
        out.append(("old", "[B, T]", "log-probabilities of the law that drew the answers"))
    for other in sorted(needs.references - {"ref"}):
        out.append((_all(other, sides), "[B]", "another policy's log-probabilities"))
    out += _fields(needs, axes)
    return out


def _known(needs: Needs) -> bool:
    return "answers" not in needs.roles and needs.roles | needs.statistics <= set(SUFFIX)


def _suffix(role: str, roles: Iterable[str]) -> str:
    if role == "target" and set(roles) == {"target"}:
        return ""
    return "_t" if role == "chosen" and "source_chosen" in set(roles) else SUFFIX[role]


def _all(name: str, sides: Iterable[str]) -> str:
    return ", ".join(f"{name}{side}" for side in sides)


def _fields(needs: Needs, axes: str) -> Told:
    out: Told = []
    fields = set(needs.fields)
    if "dot_chosen" in fields:
        fields = {name for name in fields if not name.endswith(("_chosen", "_rejected"))}
        out.append(("e_x, e_w, e_l", "[B, D]", "embeddings of the prompt and of both answers"))
        out.append(("S", "[D, D]", "their covariance, for mahalanobis"))
    for name in sorted(fields):
        short = ALIASES.get(name, ())
        shown = f"{name} (or {short[0]})" if short else name
        axis = axes if name != "advantage" else "B or B, T"
        out.append((shown, f"[{axis}]", "a number of each answer" if axes != "B" else "a number"))
    if needs.modules - {"value"}:
        out += [(n, "[..]", "the module's free numbers") for n in sorted(needs.modules - {"value"})]
    return out
