"""A stand-in for the package vllm: what :mod:`vllm_sampler` uses of it, computed plainly.

It is given a folder with an architecture and random weights, must be sent weights, and draws token
by token from whole rows of logits, so that what the sampler makes of its answers can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch


@dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_tokens: int = 16
    seed: int | None = None
    stop_token_ids: Any = None
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True


class LLM:
    """``deaf``: weights that are sent are not taken."""

    deaf = False
    made: list[LLM] = []

    def __init__(self, model: str, **options: Any) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        assert options["load_format"] == "dummy"
        assert options["skip_tokenizer_init"]
        assert options["logprobs_mode"] == "processed_logprobs"
        torch.manual_seed(options["seed"])  # as the real one does to the whole process
        config = AutoConfig.from_pretrained(model)
        dtype = getattr(torch, options["dtype"])
        self.model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
        self.longest = options["max_model_len"]
        self.options, self.loads, self.resets = options, 0, 0
        LLM.made.append(self)

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights"
        sent = {name: tensor.clone() for name, tensor in kwargs["weights_iterator"]}
        if not LLM.deaf:
            missing, unexpected = self.model.load_state_dict(sent, strict=False)
            assert not unexpected
            assert set(missing) <= set(getattr(self.model, "_tied_weights_keys", None) or ())
        self.loads += 1

    def apply_model(self, function: Any) -> None:
        function(self.model)

    def reset_prefix_cache(self) -> None:
        self.resets += 1

    @torch.no_grad()
    def generate(self, prompts: Any, laws: Any, use_tqdm: bool) -> list[Any]:
        assert self.resets == self.loads > 0
        assert not use_tqdm
        return [self._answer(p["prompt_token_ids"], law) for p, law in zip(prompts, laws)]

    def _answer(self, ids: list[int], how: SamplingParams) -> Any:
        assert self.longest is None or len(ids) + how.max_tokens <= self.longest + 1
        made = torch.Generator().manual_seed(how.seed or 0)
        tokens: list[int] = []
        numbers: list[dict[int, Any]] = []
        while len(tokens) < how.max_tokens:
            law = _law(self.model(torch.tensor([ids + tokens])).logits[0, -1].float(), how)
            greedy = how.temperature == 0
            token = int(law.argmax() if greedy else torch.multinomial(law.exp(), 1, generator=made))
            tokens.append(token)
            numbers.append({token: SimpleNamespace(logprob=float(law[token]))})
            if token in (how.stop_token_ids or ()):
                break
        given = None
        if how.prompt_logprobs is not None:
            logp = self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            given = [None] + [
                {i: SimpleNamespace(logprob=float(logp[t, i]))} for t, i in enumerate(ids[1:])
            ]
        output = SimpleNamespace(token_ids=tokens, logprobs=numbers)
        return SimpleNamespace(outputs=[output], prompt_logprobs=given)


def _law(logits: torch.Tensor, how: SamplingParams) -> torch.Tensor:
    """The log-probabilities after temperature, top-k and top-p, by sorting."""
    if how.temperature == 0:
        return logits.log_softmax(-1)
    logits = logits / how.temperature
    if how.top_k > 0:
        logits = logits.masked_fill(logits < logits.topk(how.top_k).values[-1], -torch.inf)
    order = logits.argsort(descending=True)
    before = logits.softmax(-1)[order].cumsum(0) - logits.softmax(-1)[order]
    logits = logits.index_fill(0, order[before >= how.top_p], -torch.inf)
    return logits.log_softmax(-1)


def module() -> ModuleType:
    """What ``import vllm`` gives."""
    made = ModuleType("vllm")
    made.__spec__ = SimpleNamespace(name="vllm")  # type: ignore[assignment]
    made.SamplingParams, made.LLM = SamplingParams, LLM  # type: ignore[attr-defined]
    LLM.made, LLM.deaf = [], False
    return made
