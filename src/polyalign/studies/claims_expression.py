"""The arithmetic over runs' measures that a declared claim is decided by."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

from polyalign.errors import OptionError


def asked_of(measure: str) -> set[tuple[str, str]]:
    """The (run, measure) that an expression reads.

    >>> sorted(asked_of("a.reward - b.kl"))
    [('a', 'reward'), ('b', 'kl')]
    """
    return {
        (node.value.id, node.attr)
        for node in ast.walk(ast.parse(measure, mode="eval"))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


OPERATIONS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluated(node: ast.AST, known: Mapping[tuple[str, str], float]) -> float:
    """Arithmetic over runs' measures; nothing else is understood.

    >>> evaluated(ast.parse("(a.x - b.x) / 2", mode="eval").body, {("a", "x"): 3, ("b", "x"): 1})
    1.0
    """
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Attribute(value=ast.Name(id=name), attr=attribute):
            return known[name, attribute]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATIONS:
            return OPERATIONS[type(op)](evaluated(left, known), evaluated(right, known))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -evaluated(operand, known)
        case ast.Call(func=ast.Name(id="max" | "min" as name), args=args):
            return {"max": max, "min": min}[name](evaluated(arg, known) for arg in args)
    raise OptionError(
        f"The measure '{ast.unparse(node)}' is not understood.",
        "Write arithmetic over a.reward, b.kl and the like, max and min.",
    )
