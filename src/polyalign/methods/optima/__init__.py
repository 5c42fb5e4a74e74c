"""What theory knows of each method's optimum, by id, for the laboratory (``polyalign lab``)."""

from polyalign.methods.optima import asked, beyond, lists, pairs, rewards, single, stages
from polyalign.methods.optima.known import Known

KNOWN: dict[str, tuple[Known, ...]] = {}
"""By a method's id: what is known of it, usually one optimum, several where options change it."""

for _part in (pairs, rewards, single, lists, asked, stages, beyond):
    for _id, _entries in _part.KNOWN.items():
        KNOWN[_id] = (*KNOWN.get(_id, ()), *_entries)
