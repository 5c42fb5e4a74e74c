"""Credit: from a rollout's verdicts to advantages, without gradient, over the whole rollout."""

from polyalign.credit.group import (
    GroupCredit,
    group_advantages,
    has_spread,
    leave_one_out,
    overlong_punishment,
)

__all__ = [
    "GroupCredit",
    "group_advantages",
    "has_spread",
    "leave_one_out",
    "overlong_punishment",
]
