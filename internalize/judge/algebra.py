"""Converts trees (formula.py) to SymPy expressions, matrices and sets, and tests whether two of them are equal.

Numbers are compared exactly or to 45 digits. Expressions with variables are compared at fixed pseudo-random points at
which both are real, and agreement at all of them counts as equality. SymPy's `simplify` decides only if too few points
are real, because it is slow.
"""

from __future__ import annotations

import functools
import operator
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sympy

DIGITS, NEGLIGIBLE = 60, sympy.Float("1e-45")
POINTS, ENOUGH = 24, 4
LARGEST_EXPONENT = 10**6  # of e; larger numbers take too long to evaluate
# Errors that SymPy raises for invalid input: matrices of different shapes, an interval up to i, a factorial of a set.
REFUSALS = (ArithmeticError, AttributeError, KeyError, NotImplementedError, RecursionError, TypeError, ValueError)
FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
Tree = tuple[Any, ...]


class CannotCompare(Exception):  # noqa: N818 - an outcome of a comparison, not a failure
    """One of the trees has no value."""


class Undefined(Exception):  # noqa: N818 - an outcome of an evaluation, not a failure
    """A formula has no real value at a point."""


# -- trees as SymPy objects   ---------------------------------------------------------------------------------------


def number(text: str) -> Any:
    """The exact value of a numeral: 12, 0.5, 1.2e5, 0.1(6)."""
    plain, _, block = text.rstrip(")").partition("(")
    if not block:
        return sympy.Rational(plain)
    places = len(plain.partition(".")[2])
    return sympy.Rational(f"{plain}0") + sympy.Rational(int(block), 10**places * (10 ** len(block) - 1))


_CONSTANTS = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "inf": sympy.oo}
_ATOMS: dict[str, Callable[[str], Any]] = {"num": number, "sym": sympy.Symbol, "const": _CONSTANTS.__getitem__}
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "neg": operator.neg,
    "add": operator.add,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
    "root": lambda x, n: x ** (1 / n),
    "fact": sympy.factorial,
    "fact2": sympy.factorial2,
    "percent": lambda x: x / 100,
    "degree": lambda x: x * sympy.pi / 180,
}
_TRIGONOMETRIC, _HYPERBOLIC = ("sin", "cos", "tan", "cot", "sec", "csc"), ("sinh", "cosh", "tanh")
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(sympy, name) for name in (*_TRIGONOMETRIC, *_HYPERBOLIC, "coth", "exp")},
    **{f"{arc}{name}": getattr(sympy, f"a{name}") for arc in ("a", "arc") for name in _TRIGONOMETRIC},
    **{f"{arc}{name}": getattr(sympy, f"a{name}") for arc in ("a", "ar", "arc") for name in _HYPERBOLIC},
    "ln": sympy.log,
    "lg": lambda x: sympy.log(x, 10),
    "log": lambda x, base=10: sympy.log(x, base),
    "abs": sympy.Abs,
    "floor": sympy.floor,
    "ceil": sympy.ceiling,
    "max": sympy.Max,
    "min": sympy.Min,
    "gcd": lambda *a: sympy.gcd(a),
    "lcm": lambda *a: sympy.lcm(a),
    "binom": sympy.binomial,
    "Re": sympy.re,
    "Im": sympy.im,
    "det": lambda m: m.det(),
    "tr": lambda m: m.trace(),
    "arg": sympy.arg,
}


def value(tree: Tree) -> Any:
    """The SymPy expression or matrix of a tree.

    Raises CannotCompare for lists, relations and sets, and if SymPy raises (for a sum of matrices of two shapes, say).
    """
    try:
        return _value(tree)
    except REFUSALS as error:
        raise CannotCompare from error


def _value(tree: Tree) -> Any:
    kind, *parts = tree
    if kind in _ATOMS:
        return _ATOMS[kind](parts[0])
    if kind == "call":
        return _FUNCTIONS[parts[0]](*map(_value, parts[1:]))
    return _STRUCTURES[kind](*parts) if kind in _STRUCTURES else _OPERATIONS[kind](*map(_value, parts))


def _applied(name: str, *arguments: Tree) -> Any:
    """An unknown function, represented by one variable for each combination of arguments."""
    return sympy.Symbol(f"{name}({', '.join(str(sympy.expand(_value(each))) for each in arguments)})")


def _series(make: Callable[..., Any], name: str, low: Tree, high: Tree, body: Tree) -> Any:
    variable, term = sympy.Symbol(name), _value(body)
    if name == "i":  # the index of the series, although `_value` has read it as the imaginary unit
        term = term.subs(sympy.I, variable)
    return make(term, (variable, _value(low), _value(high))).doit()


_STRUCTURES: dict[str, Callable[..., Any]] = {
    "bracket": lambda _opened, _closed, inside: _value(inside),
    "apply": _applied,
    "sum": functools.partial(_series, sympy.Sum),
    "prod": functools.partial(_series, sympy.Product),
    "matrix": lambda *rows: sympy.ImmutableMatrix([[_value(cell) for cell in row] for row in rows]),
}


# -- equality of expressions ------------------------------------------------------------------------------------------


def same_value(a: Any, b: Any) -> bool:
    """Whether two expressions or matrices are equal. A value that is not finite equals only the same infinity."""
    if isinstance(a, sympy.MatrixBase) or isinstance(b, sympy.MatrixBase):
        shapes = {getattr(each, "shape", None) for each in (a, b)}
        return len(shapes) == 1 and all(map(same_value, a, b))
    if a.has(sympy.zoo, sympy.nan) or b.has(sympy.zoo, sympy.nan):
        return False
    if a == b or (a.is_Rational and b.is_Rational) or a.has(sympy.oo) or b.has(sympy.oo):
        return bool(a == b)
    return _same_function(a, b) if a.free_symbols | b.free_symbols else _same_constant(a, b)


def _same_constant(a: Any, b: Any) -> bool:
    is_complex = a.has(sympy.I) or b.has(sympy.I)
    x, y = (at(each, {}, is_complex=is_complex) for each in (a, b))
    if x is not None and y is not None and not _close(x, y):
        return False
    if x is None or y is None or max(abs(x), abs(y)) <= NEGLIGIBLE:  # values this small pass `_close` whatever they are
        return bool((a - b).equals(0))
    return True


def _close(x: Any, y: Any) -> bool:
    return bool(abs(x - y) <= NEGLIGIBLE * max(1, abs(x), abs(y)))


def _same_function(a: Any, b: Any) -> bool:
    """Whether two expressions agree at all points at which both are real (or defined, if i occurs in them)."""
    is_complex = a.has(sympy.I) or b.has(sympy.I)
    one_is_absolute = a.has(sympy.Abs) != b.has(sympy.Abs)  # ln|x| is not ln x, though ln x² counts as 2 ln x
    agreed = 0
    for point in points(a.free_symbols | b.free_symbols):
        x, y = (at(each, point, is_complex=is_complex) for each in (a, b))
        if x is not None and y is not None:
            if not _close(x, y):
                return False
            agreed += 1
        elif one_is_absolute and (x is None) != (y is None):
            return False
    return agreed >= ENOUGH or bool(sympy.simplify(a - b) == 0)


def proportional(a: Any, b: Any, *, positive: bool) -> bool:
    """Whether b is a nonzero constant multiple of a; with `positive`, the constant must be positive."""
    if isinstance(a, sympy.MatrixBase) or a.free_symbols != b.free_symbols or not a.free_symbols:
        return same_value(a, b)
    for point in points(a.free_symbols):
        x, y = (at(each, point, is_complex=False) for each in (a, b))
        if x and y is not None:
            factor = y / x
            return bool(factor > 0 if positive else factor != 0) and same_value(a * factor, b)
    return same_value(a, b)


def points(symbols: set[Any]) -> Iterable[dict[Any, Any]]:
    """Rational points of several magnitudes, the same at every call; a third are positive, a sixth are integers."""
    draw = random.Random(0)
    for turn in range(POINTS):
        scale = (3, 1, 30, 1, 10, 400)[turn % 6]
        signs = (1,) if turn % 3 == 0 else (1, -1)
        denominator = 1 if turn % 6 == 3 else 97
        yield {
            symbol: sympy.Rational(
                draw.choice(signs) * draw.randint(1, 97 * scale if denominator > 1 else 9), denominator
            )
            for symbol in sorted(symbols, key=str)
        }


def at(expr: Any, point: dict[Any, Any], *, is_complex: bool) -> Any:
    """The value of an expression at a point; None if it or a subexpression is not real or is too large there."""
    try:
        return _at(expr, point, is_complex=is_complex)
    except (Undefined, OverflowError):
        return None


def _at(expr: Any, point: dict[Any, Any], *, is_complex: bool) -> Any:
    if expr in point:
        return point[expr]
    args = [_at(each, point, is_complex=is_complex) for each in expr.args]
    result = expr.func(*args) if args else expr
    if expr.is_Pow or isinstance(expr, sympy.exp):
        base, exponent = args if expr.is_Pow else (sympy.E, args[0])
        if abs(exponent * sympy.log(abs(base) + 2)).evalf(5) > LARGEST_EXPONENT:
            raise Undefined
        is_odd_root = exponent.is_Rational and exponent.q > 1 and exponent.q % 2
        if not is_complex and base.is_negative and is_odd_root:  # take the real root; SymPy would take a complex one
            result = abs(base) ** exponent * (-1 if exponent.p % 2 else 1)
    if not result.is_Rational:
        result = result.evalf(DIGITS)
    if not result.is_number or not result.is_finite or not (is_complex or result.is_real):
        raise Undefined
    return result


# -- sets ----------------------------------------------------------------------------------------------------------

_NUMBERS = {"R": "Reals", "Z": "Integers", "N": "Naturals", "Q": "Rationals", "C": "Complexes"}
_BOUNDED: dict[str, Callable[[Any], sympy.Set]] = {
    "<": lambda bound: sympy.Interval.open(-sympy.oo, bound),
    "<=": lambda bound: sympy.Interval(-sympy.oo, bound),
    ">": lambda bound: sympy.Interval.open(bound, sympy.oo),
    ">=": lambda bound: sympy.Interval(bound, sympy.oo),
    "=": sympy.FiniteSet,
    "!=": lambda bound: sympy.S.Reals - sympy.FiniteSet(bound),
}


def as_set(tree: Tree) -> tuple[str, sympy.Set] | None:
    """Variable ("" = none) and set of x < 2, (1, 2], x in {1, 2} and unions of these; None for any other tree."""
    match tree:
        case ("rel", operators, *sides):
            return _solutions(operators, sides)
        case ("list", "or" | "and" as mark, *items):
            return _combined([as_set(item) for item in items], sympy.Union if mark == "or" else sympy.Intersection)
        case ("cup" | "cap" | "minus" as mark, left, right):
            join = {"cup": sympy.Union, "cap": sympy.Intersection, "minus": sympy.Complement}[mark]
            return _combined([as_set(left), as_set(right)], join)
    plain = _plain_set(tree)
    return None if plain is None else ("", plain)


def _plain_set(tree: Tree) -> sympy.Set | None:
    match tree:
        case ("set", *items):
            return sympy.FiniteSet(*map(value, items))
        case ("numbers", name) if name in _NUMBERS:
            return getattr(sympy.S, _NUMBERS[name])
        case ("bracket", "(" | "[" as opened, ")" | "]" as closed, first, second):
            low, high = value(first), value(second)
            return sympy.Interval(low, high, opened == "(" or low == -sympy.oo, closed == ")" or high == sympy.oo)
    return None


def _combined(
    named_sets: Sequence[tuple[str, sympy.Set] | None], join: Callable[..., Any]
) -> tuple[str, sympy.Set] | None:
    sets = [each for each in named_sets if each is not None]
    if len(sets) < len(named_sets) or len({name for name, _ in sets}) > 1:
        return None
    return sets[0][0], join(*(each for _, each in sets))


def _solutions(operators: Sequence[str], sides: Sequence[Tree]) -> tuple[str, sympy.Set] | None:
    """The set given by x in S, x < 2, 1 < x <= 2, x != 0 or x = 1; None if the relation must be solved for x."""
    place = next((n for n, side in enumerate(sides) if side[0] == "sym"), None)
    if place is None or len(sides) > 3 or (len(sides) == 3 and place != 1):
        return None
    name = sides[place][1]
    if list(operators) == ["in"]:
        inside = as_set(sides[1]) if place == 0 else None
        return (name, inside[1]) if inside and not inside[0] else None
    solutions: sympy.Set = sympy.S.Reals
    for n, mark in enumerate(operators):
        bound = value(sides[n if n < place else n + 1])
        if mark == "in" or bound.has(sympy.Symbol(name)):
            return None
        solutions = solutions.intersect(_BOUNDED[FLIPPED.get(mark, mark) if n < place else mark](bound))
    return name, solutions


def same_set(a: sympy.Set, b: sympy.Set) -> bool:
    """Whether two sets are equal; their bounds are compared by `same_value`."""
    if a == b:
        return True
    x, y = _pieces(a), _pieces(b)
    if x is None or y is None or len(x) != len(y):
        return False
    return all(p[:2] == q[:2] and all(map(same_value, p[2:], q[2:])) for p, q in zip(x, y, strict=True))


def _pieces(whole: sympy.Set) -> list[tuple[bool, bool, Any, Any]] | None:
    """The sorted intervals of a set as (left open, right open, start, end); None for any other kind of set."""
    parts: list[tuple[bool, bool, Any, Any]] = []
    for part in whole.args if isinstance(whole, sympy.Union) else [whole]:
        if isinstance(part, sympy.FiniteSet):
            parts += [(False, False, point, point) for point in part]
        elif isinstance(part, sympy.Interval):
            parts.append((bool(part.left_open), bool(part.right_open), part.start, part.end))
        else:
            return None
    return sorted(parts, key=lambda part: (float(part[2]) if part[2].is_number else 0.0, str(part[2])))
