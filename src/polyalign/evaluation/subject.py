"""Who is evaluated: a run's final model with the model it started from, or any model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from polyalign.errors import ModelError, RunError
from polyalign.feedback.conditioning import Condition
from polyalign.policies.asked import Asked, condition_of
from polyalign.protocols import Policy

if TYPE_CHECKING:
    from polyalign.policies.language.policy import LanguagePolicy

BETA = 0.1
"""Scale of implicit rewards where the run names none."""


@dataclass(frozen=True)
class Subject:
    """A policy, what it is measured against, and the run folder it comes from, if any."""

    name: str
    policy: Policy
    reference: Policy | None = None
    reference_name: str | None = None
    beta: float = BETA
    folder: Path | None = None

    @property
    def condition(self) -> Condition | None:
        """What is written into the prompts that the policy is asked, None for nothing."""
        return self.policy.condition if isinstance(self.policy, Asked) else None


def is_run(path: str | Path) -> bool:
    """Whether ``path`` is a run folder (and not a model folder)."""
    folder = Path(path).expanduser()
    return (folder / "config.yaml").is_file() and not (folder / "config.json").exists()


def open_subject(
    what: str | Path | Policy,
    *,
    reference: str | Path | Policy | None = None,
    condition: str | float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    sampler: str | None = None,
) -> Subject:
    """Load a run's ``final/`` with its base model as the reference, or a model by name or folder.

    ``reference`` names another reference; a model alone has none. A model that was trained on
    conditioned prompts is asked with its condition, and so is its reference when rows are scored;
    ``condition`` says another value than the usual one, or "none"; ``sampler`` "vllm" draws with
    vLLM. Raises :class:`RunError` for a run without a final model, :class:`ModelError` for what
    does not load.
    """
    load: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "sampler": sampler,
    }
    if not isinstance(what, (str, Path)):
        given = None if reference is None else _other(reference, load)
        if condition is not None:
            condition_of(type(what).__name__, condition)  # raises: it knows of none
        return Subject(type(what).__name__, what, given, _name(reference))
    if not is_run(what):
        wanted = condition_of(what, condition)
        policy = _policy(what, load)
        given = None if reference is None else _beside(policy, reference, load)
        return _asked(Subject(str(what), policy, given, _name(reference)), wanted)
    folder = Path(what).expanduser()
    config = _configuration(folder)
    if not (folder / "final").is_dir():
        raise RunError(
            f"The run {folder} has no final model yet.",
            f"Finish it with: polyalign train --resume {folder}",
        )
    wanted = condition_of(folder / "final", condition)
    # Limits and template of the training, so that both sides see the same rows.
    load |= {k: config[k] for k in ("max_length", "max_prompt_length", "assistant") if k in config}
    policy = _policy(folder / "final", load)
    base = str(config["model"])
    if reference is not None:
        other: Policy = _beside(policy, reference, load)
    else:
        other = without_adapter(policy, base) or _policy(base, load)
    beta = (config.get("hyper") or {}).get("beta", BETA)
    try:
        scale = float(beta)
    except (TypeError, ValueError):
        scale = BETA  # a schedule: no one number
    name = folder.name or str(folder)
    return _asked(Subject(name, policy, other, _name(reference) or base, scale, folder), wanted)


def _asked(subject: Subject, condition: Condition | None) -> Subject:
    """The subject with a condition in the prompts of its policy and of its reference."""
    if condition is None:
        return subject
    other = subject.reference
    return replace(
        subject,
        policy=Asked(subject.policy, condition),
        reference=None if other is None else Asked(other, condition),
    )


def without_adapter(policy: LanguagePolicy, base: str) -> Policy | None:
    """The same model with its adapter off; None when that is not the model training began with.

    The adapter is set to change nothing, frozen, and set back: the constant shares the base.
    """
    from polyalign.policies.language.folders import is_adapter
    from polyalign.policies.language.models import resolve

    now = {name: x.detach().clone() for name, x in policy.trainable().items()}
    if policy.peft is None or is_adapter(resolve(base)) or not all("lora_" in n for n in now):
        return None
    policy.load({name: torch.zeros_like(x) for name, x in now.items()})
    frozen = policy.freeze()
    policy.load(now)
    return frozen


def _policy(path: str | Path, load: dict[str, Any]) -> LanguagePolicy:
    from polyalign.policies.language.policy import LanguagePolicy
    from polyalign.policies.language.vllm_sampler import sampler_of

    engine = sampler_of(load.get("sampler"), trust_remote_code=load.get("trust_remote_code"))
    load = {name: value for name, value in load.items() if name != "sampler"}
    # An adapter is loaded as one that could train on, so that it can be taken off.
    adapted = (Path(path) / "adapter_config.json").is_file()
    policy = LanguagePolicy.from_pretrained(path, frozen=not adapted, **load)
    policy.sampler = engine
    return policy


def open_beside(policy: Policy, what: str | Path, **load: Any) -> Policy:
    """A run's final model or a model by name, to be scored on the rows of ``policy``.

    Raises :class:`ModelError` when its tokens are others, so that the same rows mean other texts.
    """
    other = _other(what, load)
    same_tokens(policy, other, str(what))
    return other


def _beside(policy: Policy, what: str | Path | Policy, load: dict[str, Any]) -> Policy:
    if not isinstance(what, (str, Path)):
        return what
    return open_beside(policy, what, **load)


def same_tokens(policy: Policy, other: Policy, name: str) -> None:
    """Raise :class:`ModelError` where two language models have different vocabularies."""
    mine, theirs = (getattr(p, "tokenizer", None) for p in (policy, other))
    if mine is not None and theirs is not None and mine.get_vocab() != theirs.get_vocab():
        raise ModelError(
            f"{name} has another vocabulary, so its log-probabilities are of other texts.",
            "Use a reference with the same tokenizer as the model.",
        )


def _other(what: str | Path | Policy, load: dict[str, Any]) -> Policy:
    if not isinstance(what, (str, Path)):
        return what
    if is_run(what):
        final = Path(what).expanduser() / "final"
        if not final.is_dir():
            raise RunError(f"The run {what} has no final model.", "Finish it, or name a model.")
        return _policy(final, load)
    return _policy(what, load)


def _name(what: str | Path | Policy | None) -> str | None:
    if what is None:
        return None
    return str(what) if isinstance(what, (str, Path)) else type(what).__name__


def _configuration(folder: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        brief = str(error).splitlines()[0]
        raise RunError(f"{folder / 'config.yaml'} cannot be read: {brief}.") from None
    if not isinstance(config, dict) or "model" not in config:
        raise ModelError(
            f"{folder / 'config.yaml'} names no model.", "Give a run or a model folder."
        )
    return config
