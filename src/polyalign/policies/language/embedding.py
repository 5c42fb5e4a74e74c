"""Texts as vectors: by the policy's own states, or by a sentence encoder from a local folder.

Axes: N texts, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyalign.errors import ModelError, NeedsError
from polyalign.policies.language.policy import LanguagePolicy
from polyalign.protocols import Policy
from polyalign.types import Row, Rows

SIZE = 16
"""Texts in one forward pass."""


def states_mean(policy: Policy, texts: Sequence[str]) -> Tensor:
    """The mean over each text's tokens of a language model's last states, [N, D], float64.

    A text without a token is all zeros. Raises :class:`NeedsError` for another kind of policy.
    """
    if not isinstance(policy, LanguagePolicy):
        raise NeedsError(
            "Only a language model has states to embed texts with.",
            "Use encoder=given with embeddings in the data.",
        )
    out: list[Tensor] = []
    for start in range(0, len(texts), SIZE):
        rows = [_row(policy, text) for text in texts[start : start + SIZE]]
        batch = Rows.collate(rows)
        with torch.no_grad():
            states, places = policy.states(batch)
        owner = (places // batch.mask.shape[1]).cpu()
        for i in range(len(rows)):
            own = states[owner.to(states.device) == i].double().cpu()
            out.append(own.mean(0) if len(own) else own.new_zeros(states.shape[-1]))
    return torch.stack(out)


def _row(policy: LanguagePolicy, text: str) -> Row:
    ids: list[int] = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    limit = policy.template.max_length
    ids = ids if limit is None else ids[: limit - 1]
    if not ids:
        return Row((0,), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool))
    # A state stands before the step that it predicts, so a step more shows the last token's.
    steps = torch.tensor([*ids[1:], ids[-1]], dtype=torch.long)
    return Row((ids[0],), steps, torch.ones(len(steps), dtype=torch.bool))


class SentenceEncoder:
    """A ``transformers`` encoder folder (safetensors only); texts are means over token states.

    Texts longer than the model's positions are cut. Raises :class:`ModelError` where the folder
    does not load.
    """

    def __init__(self, folder: str | Path, *, device: str | None = None) -> None:
        from transformers import AutoModel, AutoTokenizer

        path = Path(folder).expanduser()
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
            self.model: Any = AutoModel.from_pretrained(
                path, dtype=torch.float32, use_safetensors=True, local_files_only=True
            ).eval()
        except (OSError, ValueError) as error:
            said = str(error).splitlines()[0]
            raise ModelError(
                f"The sentence encoder {path} does not load: {said}",
                "Give a local folder with an encoder and its tokenizer, or encoder=policy.",
            ) from error
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model.to(self.device)
        positions = getattr(self.model.config, "max_position_embeddings", None)
        self.limit = min(positions or 512, self.tokenizer.model_max_length)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """[N, D], float64."""
        out: list[Tensor] = []
        for start in range(0, len(texts), SIZE):
            encoded = self.tokenizer(
                list(texts[start : start + SIZE]),
                padding=True,
                truncation=True,
                max_length=self.limit,
                return_tensors="pt",
            ).to(self.device)
            with torch.no_grad():
                states = self.model(**encoded).last_hidden_state.double()
            mask = encoded["attention_mask"].unsqueeze(-1)
            out.append((states * mask).sum(1).cpu() / mask.sum(1).clamp(min=1).cpu())
        return torch.cat(out)
