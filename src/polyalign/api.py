"""What Python users call: train, sample, open a run. The command line calls the same functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyalign.errors import OptionError

if TYPE_CHECKING:
    from polyalign.policies.language.policy import LanguagePolicy
    from polyalign.recipe import Declaration
    from polyalign.runs.folder import Watcher


class Run:
    """A finished or stopped training run: its folder, numbers, model and report."""

    def __init__(self, folder: str | Path) -> None:
        from polyalign.runs.training import open_run

        self.folder = Path(folder)
        self._files, self.config = open_run(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def finished(self) -> bool:
        """Whether ``final/`` is there."""
        return self._files.finished

    @property
    def plan(self) -> dict[str, Any]:
        """What was decided before training."""
        return self._files.plan()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return self._files.metrics()

    def policy(self) -> LanguagePolicy:
        """The trained policy, loaded from ``final/``."""
        from polyalign.policies.language.policy import LanguagePolicy

        return LanguagePolicy.from_pretrained(self.folder / "final")

    def evaluate(self, data: str | Sequence[str], **options: Any) -> dict[str, Any]:
        """Measure the trained policy on feedback; see :func:`polyalign.evaluate`."""
        return evaluate(self.folder, data, **options)

    def report(self, out: str | Path | None = None) -> Path:
        """Write the self-contained report page and return its path."""
        from polyalign.reports.html import report

        return report([self.folder], Path(out) if out else self.folder / "report.html")


def evaluate(
    run_or_model: Any,
    data: Any,
    *,
    method: str | None = None,
    hyper: Mapping[str, Any] | None = None,
    save: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Measure a run's final model or any model on held-out data, and return plain data.

    Without ``method`` everything that data and judge tell, see
    :func:`polyalign.evaluation.api.evaluate`; with one, that measurement at its options ``hyper``,
    see :func:`polyalign.evaluation.api.measure`. Of a run, evaluation.json, model card and report
    hold the figures then, unless ``save`` is False.
    """
    from polyalign.evaluation import api as evaluation
    from polyalign.evaluation.subject import is_run

    if method is None:
        if hyper:
            name = next(iter(hyper))
            raise OptionError(
                f"'{name}' is no option of evaluate.",
                "Options of a measurement need its name: --with NAME.",
            )
        found = evaluation.evaluate(run_or_model, data, save=save, **options)
    else:
        from polyalign.methods import measurement

        declared = measurement(method)
        given = declared.validate(hyper or {})
        found = evaluation.measure(
            run_or_model,
            data,
            declared.id,
            declared(**given),
            options=given,
            feedback=declared.feedback,
            save=save,
            **options,
        )
    if save and isinstance(run_or_model, (str, Path)) and is_run(run_or_model):
        _retell(Path(run_or_model).expanduser())
    return found


def _retell(folder: Path) -> None:
    """Write a run's model card, and its report where there is one, again with all figures."""
    from polyalign.reports.html import report
    from polyalign.reports.model_card import write_model_card

    write_model_card(folder)
    if (folder / "report.html").exists():
        report([folder], folder / "report.html")


def declaration_of(name: str) -> Declaration:
    """The method of an id, an alias or FILE.py:function."""
    from polyalign.methods import get

    return get(name)


def train(
    method: str,
    *,
    watcher: Watcher | None = None,
    resume: bool = False,
    replan: bool = False,
    **options: Any,
) -> Run:
    """Align a model: ``train("simpo", model="smollm2", data="pairs.jsonl", output="runs/a",
    beta=2)``.

    ``options`` are those of :class:`polyalign.runs.config.TrainConfig` and of the method. Raises
    :class:`PolyalignError` with one sentence and the mend for whatever a user can mend.
    """
    from polyalign.runs.config import configure

    declaration = declaration_of(method)
    config = configure({"method": method, **options}, declaration)
    return _run(declaration, config, watcher, resume, replan)


def resume(folder: str | Path, *, watcher: Watcher | None = None, replan: bool = False) -> Run:
    """Go on with a run that was stopped, from its newest good checkpoint."""
    from polyalign.runs.training import open_run

    _, config = open_run(Path(folder))
    return _run(declaration_of(config.method), config, watcher, True, replan)


def _run(declaration: Any, config: Any, watcher: Any, resume: bool, replan: bool) -> Run:
    from polyalign.engine import processes
    from polyalign.reports.html import report
    from polyalign.reports.model_card import write_model_card
    from polyalign.runs.training import train as run

    with processes.joined():
        folder = run(declaration, config, watcher=watcher, resume=resume, replan=replan)
        if processes.rank() == 0:
            write_model_card(folder.path)
            report([folder.path], folder / "report.html")
    return Run(folder.path)


def plan(method: str, *, watcher: Watcher | None = None, **options: Any) -> dict[str, Any]:
    """Everything :func:`train` would check and decide, without training (``--dry-run``)."""
    import tempfile

    from polyalign.engine import processes
    from polyalign.runs.config import configure
    from polyalign.runs.folder import Silent
    from polyalign.runs.training import prepare

    declaration = declaration_of(method)
    with processes.joined(), tempfile.TemporaryDirectory() as scratch:
        config = configure({"method": method, "output": scratch, **options}, declaration)
        ready = prepare(
            declaration, config.model_copy(update={"output": Path(scratch)}), watcher or Silent()
        )
        return {"config": config.model_dump(mode="json"), "plan": ready.plan}


def sample(
    model: str | Path,
    prompts: Sequence[Any],
    *,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 128,
    seed: int = 0,
    condition: str | float | None = None,
    sampler: str | None = None,
) -> list[list[str]]:
    """``n`` answers of a model or run to each prompt (a string, or a list of messages).

    A string is asked as a user's turn when the model has a chat template. A model that was trained
    on conditioned prompts is asked with its condition; ``condition`` says another value than the
    usual one, or "none". ``sampler``: "vllm" draws with vLLM.
    """
    import torch

    from polyalign.feedback.units import seed_of
    from polyalign.policies.asked import condition_of
    from polyalign.policies.language.policy import LanguagePolicy
    from polyalign.policies.language.vllm_sampler import sampler_of
    from polyalign.protocols import Sampling

    engine = sampler_of(sampler)
    if n < 1:
        raise OptionError(f"n={n} asks for no answer.", "Give at least 1.")
    folder = _final(model)
    wanted = condition_of(folder, condition)
    policy = LanguagePolicy.from_pretrained(folder if folder.exists() else model, frozen=True)
    policy.sampler = engine
    chat = getattr(policy.tokenizer, "chat_template", None) is not None
    contexts = [_payload(prompt, chat) for prompt in prompts]
    if wanted is not None:
        contexts = [wanted.ask(context) for context in contexts]
    seeds = [seed_of(seed, "sample", i, j) for i in range(len(contexts)) for j in range(n)]
    how = Sampling(temperature, top_p, top_k, max_new_tokens)
    with torch.no_grad():
        drawn = policy.sample(contexts, n, how, seeds)
    texts = [text_of(payload) for payload in drawn.payloads]
    return [texts[i * n : (i + 1) * n] for i in range(len(contexts))]


def asked_with(model: str | Path, condition: str | float | None = None) -> str | None:
    """What :func:`sample` writes into prompts of a model or run, None for nothing."""
    from polyalign.policies.asked import condition_of

    wanted = condition_of(_final(model), condition)
    return None if wanted is None else wanted.told().strip()


def _final(model: str | Path) -> Path:
    """A run's final model, or the model's folder itself."""
    folder = Path(model)
    return folder / "final" if (folder / "final").is_dir() else folder


def _payload(prompt: Any, chat: bool) -> Any:
    if isinstance(prompt, str):
        return ({"role": "user", "content": prompt},) if chat else prompt
    return tuple(prompt)


def text_of(payload: Any) -> str:
    """A completion payload as text."""
    if isinstance(payload, str):
        return payload
    return "\n".join(
        turn["content"] if isinstance(turn, Mapping) else json.dumps(turn) for turn in payload
    )
