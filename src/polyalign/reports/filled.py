"""Pages from their templates, all by the same rules."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def filled(template: str, /, **values: Any) -> str:
    """A template with its values, which are escaped; a name without a value is an error."""
    environment = Environment(
        loader=PackageLoader("polyalign.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
