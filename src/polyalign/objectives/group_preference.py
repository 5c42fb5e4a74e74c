"""Group preference: two prompts and two answers, right pairings against wrong ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from polyalign.objectives.links import Link, Logistic
from polyalign.objectives.rewards import Reward, SumLogRatio
from polyalign.types import Loss, Needs, Scores, State, needs


@dataclass(frozen=True)
class GroupPreference:
    """``link(scale * (r_11 + r_22 - r_12 - r_21))`` over quadruples, r_ij of answer j, prompt i.

    The roles are ``own_11``, ``own_12``, ``own_21``, ``own_22``. Terms that depend on the prompt
    or on the answer alone cancel. Source: Zhang et al. 2024, arXiv 2411.06208, equation 9.

    Metrics: ``rewards/chosen`` and ``rewards/rejected`` are the means of the two right and of the
    two wrong pairings; ``accuracies/response`` is the share of prompts that prefer their own
    answer, ``accuracies/instruction`` the share of answers that prefer their own prompt.
    """

    reward: Reward = field(default_factory=SumLogRatio)
    scale: float = 0.1
    link: Link = field(default_factory=Logistic)

    @property
    def needs(self) -> Needs:
        return needs("own_11", "own_12", "own_21", "own_22") | self.reward.needs | self.link.needs

    def __call__(self, scores: Scores, state: State) -> Loss:
        own = {ij: scores[f"own_{ij}"] for ij in ("11", "12", "21", "22")}
        r_11, r_12 = self.reward(own["11"], own["12"]), self.reward(own["12"], own["11"])
        r_21, r_22 = self.reward(own["21"], own["22"]), self.reward(own["22"], own["21"])
        z = self.scale * (r_11 + r_22 - r_12 - r_21)
        right = self.scale * (r_11 + r_22).detach() / 2
        wrong = self.scale * (r_12 + r_21).detach() / 2
        number = z.dtype
        response = ((r_11 > r_12).to(number) + (r_22 > r_21).to(number)) / 2
        instruction = ((r_11 > r_21).to(number) + (r_22 > r_12).to(number)) / 2
        return Loss(
            (scores.per_unit(self.link(z, scores)),),
            {
                "rewards/chosen": scores.per_unit(right),
                "rewards/rejected": scores.per_unit(wrong),
                "rewards/margins": scores.per_unit(right - wrong),
                "rewards/accuracies": scores.per_unit((right > wrong).to(number)),
                "accuracies/response": scores.per_unit(response),
                "accuracies/instruction": scores.per_unit(instruction),
                "logps/chosen": scores.per_unit((own["11"].sum() + own["22"].sum()).detach() / 2),
                "logps/rejected": scores.per_unit((own["12"].sum() + own["21"].sum()).detach() / 2),
            },
        )
