"""A policy written as a folder that `transformers` and `peft` load."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polyalign.errors import ModelError
from polyalign.policies.language import quantised
from polyalign.policies.language.folders import NOTE

if TYPE_CHECKING:
    from polyalign.policies.language.policy import LanguagePolicy


def write(
    policy: LanguagePolicy,
    folder: Path,
    dtype: torch.dtype | None,
    weights: Mapping[str, Tensor] | None,
) -> Path:
    """Write weights, tokenizer and chat template; see :meth:`LanguagePolicy.save`."""
    if policy.peft is None and quantised.told(policy.model):
        raise ModelError(
            "A quantised model without an adapter has nothing of its own to save.",
            "Copy the folder that it came from.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    model = policy.model if policy.peft is None else policy.peft
    if weights is not None:
        model.save_pretrained(folder, state_dict=dict(weights))
    elif dtype is not None:
        copy.deepcopy(model).to(dtype).save_pretrained(folder)
    else:
        model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's own, empty model card
    policy.tokenizer.save_pretrained(folder)
    if policy.peft is not None and policy.quantize is not None:
        (folder / NOTE).write_text(json.dumps({"quantize": policy.quantize}) + "\n")
    return folder
