"""What theory knows of each method's optimum, by id, for the laboratory (``polyalign lab``)."""

from polyalign.methods.optima import beyond, lists, pairs, rewards, single, stages
from polyalign.methods.optima.known import Known

KNOWN: dict[str, tuple[Known, ...]] = {
    **pairs.KNOWN,
    **rewards.KNOWN,
    **single.KNOWN,
    **lists.KNOWN,
    **stages.KNOWN,
    **beyond.KNOWN,
}
"""By a method's id: what is known of it, usually one optimum, several where options change it."""
