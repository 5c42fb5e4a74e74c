"""The report of a check: findings with counts and examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or risky: how many of how many, and where.

    ``rows`` are the indices concerned (of a pair of rows, the later), ``removed`` says whether
    ``fix`` takes them out.
    """

    level: Level
    code: str
    message: str
    count: int
    of: int
    examples: tuple[Mapping[str, Any], ...] = ()
    rows: tuple[int, ...] = ()
    removed: bool = False
    unit: str = "rows"

    @property
    def share(self) -> float:
        """The share of what was looked at."""
        return self.count / self.of if self.of else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The finding as plain data, without the list of all rows."""
        return {
            "level": self.level,
            "code": self.code,
            "message": self.message,
            "count": self.count,
            "of": self.of,
            "unit": self.unit,
            "share": self.share,
            "fixable": self.removed,
            "examples": [dict(example) for example in self.examples],
        }


@dataclass
class CheckReport:
    """What a check found in a feedback set; ``facts`` holds figures that are no fault."""

    source: str
    format: str
    kind: str
    rows: int
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> bool:
        """Whether anything was found that must be mended before training."""
        return any(finding.level == "error" for finding in self.findings)

    def finding(self, code: str) -> Finding | None:
        """The finding with a code, if there is one."""
        return next((found for found in self.findings if found.code == code), None)

    def count(self, code: str) -> int:
        """How often a code was found."""
        found = self.finding(code)
        return found.count if found else 0

    def add(self, findings: Iterable[Finding]) -> None:
        """Add findings, the worst first in the whole."""
        self.findings += findings
        self.findings.sort(key=lambda found: LEVELS.index(found.level))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "source": self.source,
            "format": self.format,
            "kind": self.kind,
            "rows": self.rows,
            "errors": self.errors,
            "findings": [finding.to_dict() for finding in self.findings],
            "facts": self.facts,
        }

    def render(self) -> list[str]:
        """The report as plain lines."""
        lines = [f"{self.source}: {self.rows:,} {self.kind}", f"format: {self.format}"]
        for finding in self.findings:
            share = f"{finding.count:,} of {finding.of:,} {finding.unit} ({finding.share:.1%})"
            lines.append(f"{finding.level:<8} {finding.code}: {finding.message} {share}")
            lines += [f"{'':9}{_spoken(example)}" for example in finding.examples]
        if not self.findings:
            lines.append("nothing found")
        for name, fact in self.facts.items():
            lines.append(f"{name}: {_spoken(fact) if isinstance(fact, Mapping) else fact}")
        worst = [sum(found.level == level for found in self.findings) for level in LEVELS]
        lines.append(
            ", ".join(
                f"{n} {level}{'' if n == 1 else 's'}"
                for n, level in zip(worst, LEVELS, strict=True)
            )
        )
        return lines


def _spoken(values: Mapping[str, Any]) -> str:
    """Names and values on one line."""
    shown = {
        name: f"{value:.3f}" if isinstance(value, float) else value
        for name, value in values.items()
        if value is not None
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items())
