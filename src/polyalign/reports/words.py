"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def number(x: Any, digits: int = 3) -> str:
    """A number with ``digits`` significant digits, "–" where there is none.

    >>> number(0.123456), number(12345.6), number(None), number(1e-5), number(True)
    ('0.123', '12,346', '–', '1e-05', 'yes')
    """
    if isinstance(x, bool):
        return "yes" if x else "no"
    if not isinstance(x, (int, float)):
        return "–" if x is None else str(x)
    if not math.isfinite(x):
        return "∞" if x == math.inf else "−∞" if x == -math.inf else "–"
    if isinstance(x, int) or abs(x) >= 10**digits:
        return f"{x:,.0f}"
    return f"{x:.{digits}g}" if abs(x) < 1e-3 and x else f"{float(f'{x:.{digits}g}'):.10g}"


def percent(x: Any) -> str:
    """A share as a percentage with one decimal.

    >>> percent(0.6251)
    '62.5 %'
    """
    if not isinstance(x, (int, float)) or not math.isfinite(x):
        return "–"
    return f"{100 * x:.1f} %"


def estimate(e: Mapping[str, Any] | None, share: bool = False) -> str:
    """A value with its interval, from an estimate's plain data.

    >>> estimate({"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}, share=True)
    '50.0 % [40.0, 60.0]'
    """
    if not e or e.get("value") is None:
        return "–"
    value, low, high = e["value"], e.get("low"), e.get("high")
    if low is None or high is None:
        return f"{percent(value) if share else number(value)} [no interval]"
    if share:
        return f"{percent(value)} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{number(value)} [{number(low)}, {number(high)}]"


def p_value(p: Any) -> str:
    """A p-value, never "0".

    >>> p_value(0.00001), p_value(0.0314)
    ('p < 0.001', 'p = 0.031')
    """
    if not isinstance(p, (int, float)) or not math.isfinite(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def duration(seconds: Any) -> str:
    """Seconds in the two largest units.

    >>> duration(42), duration(200), duration(7300)
    ('42 s', '3 min 20 s', '2 h 1 min')
    """
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return "–"
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    return f"{s // 3600} h {s % 3600 // 60} min"


def count(n: int, noun: str) -> str:
    """A number of things.

    >>> count(1, "pair"), count(1200, "pair")
    ('1 pair', '1,200 pairs')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def millions(n: Any) -> str:
    """A number of parameters.

    >>> millions(134_515_008), millions(4_900_000_000)
    ('135 million', '4.9 billion')
    """
    if not isinstance(n, (int, float)):
        return "–"
    if n >= 1e9:
        return f"{n / 1e9:.1f} billion"
    return f"{n / 1e6:.0f} million" if n >= 1e7 else f"{n / 1e6:.1g} million"
