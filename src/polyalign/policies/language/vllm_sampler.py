"""Sampling by vLLM, behind the same interface as our own (:mod:`generate`).

The engine lives in this process, beside the policy on its device, and holds whole weights of its
own. Before anything is drawn it is given the policy's weights as they are, adapters folded in, and
is then asked for the log-probabilities of a few known tokens: where they are not the policy's,
nothing is drawn. What it returns are the log-probabilities of the law it drew from, temperature and
truncation included, so an importance ratio of the policy to them is right although both compute in
other kernels.

Needs `pip install 'polyalign[vllm]'` (vLLM 0.30 or newer).
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from polyalign.engine import processes
from polyalign.errors import ModelError, NumericsError, OptionError, nearest
from polyalign.policies.language.fold import weights
from polyalign.types import Row, Rows

if TYPE_CHECKING:
    from polyalign.policies.language.policy import LanguagePolicy
    from polyalign.protocols import Sampling

log = logging.getLogger(__name__)

PROBE = 32
"""Tokens on which engine and policy are compared whenever weights were sent."""
TOLERANCE = {torch.float32: 0.01, torch.float64: 0.01}
"""Mean difference of a probe's log-probabilities, nats, that other kernels explain; else 0.1."""
PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
"""What vLLM reads from the environment, unless the user set it: weights are handed over as they
are only within a process.
"""
ON_CPU = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
"""The same where vLLM computes on a CPU: no pinning of threads that also train, 1 GiB of keys."""


def sampler_of(name: str | None, memory: float | None = None, **others: Any) -> Vllm | None:
    """What draws: "own" (or None) is our sampling, "vllm" an engine with a share of a GPU's memory.

    Raises :class:`OptionError` for another name, and where vLLM is not installed, cannot be used
    here, or does not go with ``others``, options that are set.
    """
    if name in (None, "own"):
        return None
    if name != "vllm":
        raise OptionError(f"There is no sampler '{name}'.", nearest(name, ("own", "vllm")))
    if importlib.util.find_spec("vllm") is None:
        raise OptionError(
            "sampler=vllm needs the package vllm, which is not installed.",
            "pip install 'polyalign[vllm]', or leave sampler out.",
        )
    if processes.count() > 1:
        raise OptionError(
            "sampler=vllm runs in one process, and there are several.",
            "Leave sampler out, or start one process.",
        )
    for name, value in others.items():
        if value:
            raise OptionError(
                f"sampler=vllm does not go with {name}={value}.", f"Leave sampler or {name} out."
            )
    return Vllm() if memory is None else Vllm(memory)


@dataclass
class Vllm:
    """A vLLM engine, begun at the first draw. ``memory`` is its share of a GPU's memory."""

    memory: float = 0.3
    _engine: Any = field(default=None, repr=False)

    def draw(
        self,
        policy: LanguagePolicy,
        contexts: Sequence[tuple[int, ...]],
        n: int,
        how: Sampling,
        seeds: Sequence[int],
    ) -> list[tuple[list[int], list[float], bool]]:
        """For each row its tokens, the log-probability of each by the law that drew, and whether
        it ended before the budget; rows of a context behind one another.

        Raises :class:`ModelError` where vLLM cannot serve the model, and :class:`NumericsError`
        where it computes another law than the policy.
        """
        _environment(policy)
        from vllm import SamplingParams

        with _own_random_numbers():
            if self._engine is None:
                self._engine = self._begun(policy)
            self._send(policy)
            self._compare(policy, max(contexts, key=len))
            stops = sorted(policy.template.stops)
            laws = [
                SamplingParams(
                    temperature=how.temperature,
                    top_p=how.top_p,
                    top_k=how.top_k or -1,
                    max_tokens=how.max_steps,
                    seed=int(seed) % (1 << 63),
                    stop_token_ids=stops,
                    ignore_eos=True,
                    logprobs=0,
                    detokenize=False,
                )
                for seed in seeds
            ]
            asked = [{"prompt_token_ids": list(c)} for c in contexts for _ in range(n)]
            answers = self._engine.generate(asked, laws, use_tqdm=False)
        return [_row(answer.outputs[0], how, policy.template.stops) for answer in answers]

    def _begun(self, policy: LanguagePolicy) -> Any:
        """An engine for the policy's architecture, its weights still to be sent."""
        from vllm import LLM

        longest = getattr(policy.model.config, "max_position_embeddings", None)
        limits = [x for x in (policy.template.max_length, longest) if x]
        with tempfile.TemporaryDirectory() as folder:
            policy.model.config.save_pretrained(folder)
            try:
                return LLM(
                    model=folder,
                    load_format="dummy",
                    skip_tokenizer_init=True,
                    dtype=str(policy.trunk.dtype).removeprefix("torch."),
                    max_model_len=min(limits) if limits else None,
                    gpu_memory_utilization=self.memory,
                    enforce_eager=policy.device.type == "cpu",
                    logprobs_mode="processed_logprobs",
                    generation_config="vllm",
                    seed=0,
                )
            except (ValueError, RuntimeError) as error:
                first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
                raise ModelError(
                    f"vLLM cannot serve this model ({first}).",
                    "Leave sampler out, or give it more memory (vllm_memory).",
                ) from error

    def _send(self, policy: LanguagePolicy) -> None:
        dtype = policy.trunk.dtype
        named = ((name, tensor.to(dtype)) for name, tensor in weights(policy.model))
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": named})
        if policy.device.type == "cpu":
            self._engine.apply_model(_pack_heads)
        self._engine.reset_prefix_cache()

    def _compare(self, policy: LanguagePolicy, context: tuple[int, ...]) -> None:
        """Raise :class:`NumericsError` where known tokens have other log-probabilities."""
        from vllm import SamplingParams

        ids = [*context, *range(2)][:PROBE]
        how = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0.0, detokenize=False)
        given = {"prompt_token_ids": ids}
        (answer,) = self._engine.generate([given], [how], use_tqdm=False)
        theirs = [float(at[i].logprob) for at, i in zip(answer.prompt_logprobs[1:], ids[1:])]
        row = Row((ids[0],), torch.tensor(ids[1:]), torch.ones(len(ids) - 1, dtype=torch.bool))
        with torch.no_grad():
            ours = policy.score(Rows.collate([row])).logp[0].double().cpu()
        gap = float((ours - torch.tensor(theirs, dtype=torch.float64)).abs().mean())
        log.info("vLLM and the policy differ by %.2g nats a token on %d tokens", gap, len(ids) - 1)
        if not gap <= TOLERANCE.get(policy.trunk.dtype, 0.1):
            raise NumericsError(
                f"vLLM computes another law than the policy: {gap:.3g} nats a token on a prompt.",
                "Leave sampler out; its own sampling computes what training does.",
            )


def _environment(policy: LanguagePolicy) -> None:
    for name, value in (PROCESS | (ON_CPU if policy.device.type == "cpu" else {})).items():
        os.environ.setdefault(name, value)


def _pack_heads(model: Any) -> None:
    """On a CPU vLLM multiplies with a packed copy of the output head, which it does not make anew
    where the head is the embedding's weight.
    """
    for module in model.modules():
        if hasattr(module, "cpu_linear") and type(module).__name__ == "ParallelLMHead":
            module.quant_method.process_weights_after_loading(module)


def _row(answer: Any, how: Sampling, stops: frozenset[int]) -> tuple[list[int], list[float], bool]:
    tokens = [int(token) for token in answer.token_ids]
    if how.temperature == 0:
        old = [0.0] * len(tokens)  # all of the law is in the token that was taken
    else:
        old = [float(at[token].logprob) for at, token in zip(answer.logprobs, tokens, strict=True)]
    return tokens, old, bool(tokens) and tokens[-1] in stops


@contextlib.contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Afterwards the process's random numbers go on as if nothing had been drawn within."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)  # noqa: NPY002
