"""Modules beside a language policy: a value at each of its steps.

Axes: N rows, T steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyalign.errors import OptionError, nearest
from polyalign.policies.language import adapters
from polyalign.types import Rows

if TYPE_CHECKING:
    from polyalign.policies.language.policy import LanguagePolicy


class Value(nn.Module):
    """A scalar of the state before each of a row's own steps, 0 elsewhere, in float32 or better.

    ``trunk`` "copy": its own weights wherever the policy trains its own (an adapter, or all of
    them). "shared-frozen": the policy's weights as they are now, constant; only the head trains.
    The head starts at zero, so every value does.
    """

    def __init__(self, policy: LanguagePolicy, trunk: str = "copy") -> None:
        super().__init__()
        if trunk not in ("copy", "shared-frozen"):
            raise OptionError(
                f"A value module has no trunk '{trunk}'.", nearest(trunk, ["copy", "shared-frozen"])
            )
        policy.trunk.layout()
        if not policy.trunk.splits:
            raise OptionError(
                "This model's states cannot be had apart from its logits, so a value reads none.",
                "Use a method without a value module.",
            )
        self.frozen = trunk == "shared-frozen"
        if self.frozen:
            base = policy.freeze()
        else:
            from polyalign.policies.language.policy import LanguagePolicy

            model = adapters.twin(policy.model, policy.trainable().values())
            base = LanguagePolicy(
                model, policy.tokenizer, template=policy.template, trunk=policy.trunk.of(model)
            )
            # The output head reads tokens, not values; tied, it is the embedding and stays.
            output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
            if output.weight is not embedding.weight:
                output.requires_grad_(False)
            self.body = nn.ParameterDict(
                {n.replace(".", "/"): p for n, p in model.named_parameters() if p.requires_grad}
            )
        self._base: Any = [base]  # in a list: what does not train is not this module's to save
        width = policy.trunk.config.hidden_size
        dtype = torch.promote_types(policy.model.dtype, torch.float32)
        self.head = nn.Linear(width, 1, device=policy.device, dtype=dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> Value:
        """Evaluation mode always: values are a function of parameters and rows."""
        return super().train(False)

    def forward(self, rows: Rows) -> Tensor:
        """Values [N, T]."""
        base = self._base[0]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            states, own = base.states(rows)
        values = F.linear(states.to(self.head.weight.dtype), self.head.weight, self.head.bias)
        n, t = rows.mask.shape
        out = values.new_zeros(n * t)
        return out.index_put((own,), values.squeeze(-1)).reshape(n, t)
