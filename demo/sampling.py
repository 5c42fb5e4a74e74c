"""Plain batched sampling for the demo's own feedback: every answer has its own random numbers.

An answer depends on its prompt, its number and the seed, not on what else is in the batch, so a
run that is continued gives the same answers as one that was never interrupted (up to rounding,
which the padding of a batch can change).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def uniforms(seed: int, purpose: str, length: int) -> Tensor:
    """``length`` uniform numbers in [0, 1) that belong to (seed, purpose)."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(length, generator=generator, dtype=torch.float64)


@torch.inference_mode()
def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[dict[str, str]]],
    draws: Tensor,
    *,
    temperature: float = 1.0,
) -> list[list[tuple[str, int, bool]]]:
    """Answers to each prompt: (text, tokens, whether it ended by itself), greedy at temperature 0.

    ``draws`` [P, K, T] holds the random number of each of T steps of K answers to P prompts.
    """
    P, K, T = draws.shape
    tokenizer.padding_side = "left"
    inputs = tokenizer.apply_chat_template(
        list(prompts), add_generation_prompt=True, padding=True,
        return_tensors="pt", return_dict=True,
    )  # fmt: skip
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(
        inputs["input_ids"], attention_mask=mask, position_ids=positions, use_cache=True,
        logits_to_keep=1,
    )  # fmt: skip
    # The prompt is read once; its K answers go on from copies of the cache.
    cache, logits = out.past_key_values, out.logits[:, -1].repeat_interleave(K, 0)
    cache.batch_repeat_interleave(K)
    mask, last = mask.repeat_interleave(K, 0), positions[:, -1:].repeat_interleave(K, 0)
    draws, alive = draws.reshape(P * K, T), torch.arange(P * K)
    answers: list[list[int]] = [[] for _ in range(P * K)]
    for t in range(T):
        token = _choose(logits, draws[alive, t], temperature)
        for row, chosen in zip(alive.tolist(), token.tolist()):
            answers[row].append(chosen)
        going = (token != tokenizer.eos_token_id).nonzero()[:, 0]
        if t == T - 1 or not len(going):
            break
        if len(going) < len(alive):
            # Rows that have ended leave the batch.
            cache.batch_select_indices(going)
            alive, token, mask, last = alive[going], token[going], mask[going], last[going]
        mask, last = torch.cat([mask, mask.new_ones(len(mask), 1)], 1), last + 1
        out = model(
            token[:, None], attention_mask=mask, position_ids=last, past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
        logits = out.logits[:, -1]
    told = [_told(ids, tokenizer) for ids in answers]
    return [told[i : i + K] for i in range(0, P * K, K)]


def _choose(logits: Tensor, draw: Tensor, temperature: float) -> Tensor:
    """The token whose interval of the cumulative distribution holds the random number."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits.float() / temperature).softmax(-1).cumsum(-1)
    found = torch.searchsorted(cumulative, draw[:, None].float() * cumulative[:, -1:])
    return found[:, 0].clamp(max=logits.shape[-1] - 1)


def _told(ids: list[int], tokenizer: Any) -> tuple[str, int, bool]:
    finished = ids[-1] == tokenizer.eos_token_id
    return tokenizer.decode(ids, skip_special_tokens=True), len(ids), finished
