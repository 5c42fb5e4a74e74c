"""What theory knows of each method's optimum, by id, for the laboratory (``polyalign lab``)."""

from polyalign.methods.optima import beyond, pairs, single
from polyalign.methods.optima.known import Known

KNOWN: dict[str, tuple[Known, ...]] = {**pairs.KNOWN, **single.KNOWN, **beyond.KNOWN}
"""By a method's id: what is known of it, usually one optimum, several where options change it."""
