"""A judge that is a reward model: a sequence classifier with one output, from a local folder.

The score is read at each answer's last real token, found from the mask: never from padding ids
(pad may equal EOS) and never from the batch's width. So it does not depend on who else is in
the batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyalign.errors import ModelError
from polyalign.feedback.payloads import is_conversation, text_of
from polyalign.protocols import Verdict


class RewardModel:
    """Scores [N] by a ``transformers`` sequence-classification folder (safetensors only).

    Rows that are longer than the model's positions are abstained on, never cut. Prompts that are
    plain text are asked as a user's turn when the tokenizer has a chat template.
    Raises :class:`ModelError` where the folder holds no such model.
    """

    pairwise = False

    def __init__(
        self,
        folder: str | Path,
        *,
        batch_tokens: int = 8192,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        path = Path(folder).expanduser()
        check_folder(path)
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.name = path.name
        self.batch_tokens = batch_tokens
        try:
            model, found = AutoModelForSequenceClassification.from_pretrained(
                path,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
            )
            self.tokenizer = AutoTokenizer.from_pretrained(
                path, trust_remote_code=trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError) as error:
            said = str(error).splitlines()[0]
            raise ModelError(
                f"The reward model {path} does not load: {said}", "Check the folder."
            ) from error
        if found["missing_keys"]:
            raise ModelError(
                f"The reward model {path} has no trained weights for "
                f"{', '.join(sorted(found['missing_keys'])[:3])}.",
                "A language model is not a reward model: its scores would be random.",
            )
        if model.config.num_labels != 1:
            raise ModelError(
                f"The reward model {path} has {model.config.num_labels} outputs.",
                "A judge's score needs a model with num_labels = 1.",
            )
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(where).eval()
        self.device = torch.device(where)
        self.limit = getattr(model.config, "max_position_embeddings", None)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], meta: Sequence[Mapping[str, Any]]
    ) -> Verdict:
        rows = [self.encode(p, c) for p, c in zip(prompts, completions)]
        short = [i for i, ids in enumerate(rows) if self.limit is None or len(ids) <= self.limit]
        score = torch.zeros(len(rows), dtype=torch.float64)
        for part in _by_length([(i, len(rows[i])) for i in short], self.batch_tokens):
            score[part] = self._score([rows[i] for i in part]).double().cpu()
        abstained = torch.ones(len(rows), dtype=torch.bool)
        abstained[short] = False
        return Verdict(score=score, abstained=abstained)

    def encode(self, prompt: Any, completion: Any) -> list[int]:
        """Token ids of one prompt with its answer, as this model's tokenizer wants them."""
        if getattr(self.tokenizer, "chat_template", None):
            turns = [dict(t) for t in prompt] if is_conversation(prompt) else []
            if not turns:
                turns = [{"role": "user", "content": text_of(prompt)}]
            if is_conversation(completion):
                turns += [dict(t) for t in completion]
            else:
                turns.append({"role": "assistant", "content": text_of(completion)})
            text = self.tokenizer.apply_chat_template(turns, tokenize=False)
            # The template writes its own BOS: adding another would shift every score.
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer(text_of(prompt) + text_of(completion))["input_ids"])

    @torch.no_grad()
    def _score(self, rows: Sequence[Sequence[int]]) -> Tensor:
        size = torch.tensor([len(ids) for ids in rows], device=self.device)
        ids = torch.zeros(len(rows), int(size.max()), dtype=torch.long, device=self.device)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, device=self.device)
        mask = (torch.arange(ids.shape[1], device=self.device) < size[:, None]).long()
        head = getattr(self.model, "score", None)
        if isinstance(head, torch.nn.Linear):
            body = self.model.base_model
            hidden = body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            last = hidden[torch.arange(len(rows), device=self.device), size - 1]
            return head.float()(last.float()).squeeze(-1)
        # Encoders read their first token: padding on the right cannot move it.
        return self.model(input_ids=ids, attention_mask=mask).logits.float().squeeze(-1)


def check_folder(path: Path) -> None:
    """Raise :class:`ModelError` unless ``path`` is a sequence classifier in safetensors."""
    config = path / "config.json"
    if not config.is_file():
        raise ModelError(f"{path} is no model folder: it has no config.json.", "Check the path.")
    try:
        architectures = json.loads(config.read_text("utf-8")).get("architectures") or []
    except (OSError, ValueError) as error:
        raise ModelError(f"{config} cannot be read: {error}.", "Bring the model anew.") from None
    if not any(str(name).endswith("ForSequenceClassification") for name in architectures):
        raise ModelError(
            f"{path} is a {', '.join(architectures) or 'model of unknown kind'}, no reward model.",
            "A reward-model judge is a …ForSequenceClassification with one output.",
        )
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{path} has no *.safetensors file.",
            "Other formats can run code when they are opened; convert the model to safetensors.",
        )


def _by_length(sizes: Sequence[tuple[int, int]], budget: int) -> list[list[int]]:
    """Indices in batches of similar lengths whose padded size stays within ``budget``."""
    out: list[list[int]] = []
    longest = 0
    for i, size in sorted(sizes, key=lambda pair: -pair[1]):
        if out and longest * (len(out[-1]) + 1) <= budget:
            out[-1].append(i)
        else:
            out.append([i])
            longest = size
    return out
