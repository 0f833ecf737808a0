"""The process that compares formulas: it reads lines of two trees (formula.py) and writes true, false or null.

Formulas come from models and may take unbounded time or memory, so the process has a memory limit and may be killed.
The comparison is not symmetric: an answer may omit details of the reference, but the reference may not omit those of
the answer.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence
from typing import Any

import sympy

from .algebra import FLIPPED, REFUSALS, CannotCompare, as_set, number, proportional, same_set, same_value, value
from .formula import Tree
from .maths import Conventions

MEMORY = 4 << 30  # bytes of address space
_SET_OPERATIONS = {"cup", "cap", "minus", "numbers"}
_NO_VALUE = {"list", "set", "rel", "bracket", "ratio", "based", *_SET_OPERATIONS}


class Comparison:
    """Compares the trees of a reference and an answer under the given conventions."""

    def __init__(self, conventions: Conventions) -> None:
        self._conventions = conventions

    def equal(self, reference: Tree, answer: Tree) -> bool:
        """Whether the answer equals the reference. Raises CannotCompare if one of them has no value."""
        special = {"unit": self._equal_quantities, "degree": self._equal_degrees, "based": self._equal_based}
        for kind, compare in special.items():
            if kind in (reference[0], answer[0]):
                return compare(reference, answer)
        reference, answer = (_unchained(_without_signs(tree)) for tree in (reference, answer))
        expected, actual = defined(reference), defined(answer)
        if expected and actual and expected[0] == actual[0]:
            return self.equal(expected[1], actual[1])
        if actual and reference[0] != "rel":
            return self.equal(reference, actual[1])
        if expected and answer[0] != "rel":
            return self.equal(expected[1], answer)
        return self._equal_kinds(reference, answer)

    def _equal_kinds(self, reference: Tree, answer: Tree) -> bool:
        """Compares two sides by the rule for their kinds of tree."""
        kinds = {reference[0], answer[0]}
        if kinds != {"bracket"} and (is_set(reference) or is_set(answer)):
            sets = [as_set(tree) for tree in (reference, answer)]
            if sets[0] and sets[1] and (sets[0][0] == sets[1][0] or not sets[0][0] or not sets[1][0]):
                return same_set(sets[0][1], sets[1][1])
        if kinds <= {"list", "set"}:
            return self._equal_lists(reference, answer)
        if kinds == {"rel"}:
            return self._equal_relations(reference, answer)
        if "bracket" in kinds or kinds == {"ratio"}:
            return self._equal_brackets(reference, answer)
        for one, other in ((reference, answer), (answer, reference)):
            if one[0] == "set" and len(one) == 2:  # a set of solutions with one element equals the element
                return self.equal(one[1], other)
        return not kinds & _NO_VALUE and self._equal_values(reference, answer)

    def _equal_quantities(self, reference: Tree, answer: Tree) -> bool:
        """Whether quantities and units are equal; an optional unit may be missing, but not one in words (12 km)."""
        if reference[0] == answer[0]:
            return bool(reference[2] == answer[2]) and self.equal(reference[1], answer[1])
        quantity, other = (reference, answer) if reference[0] == "unit" else (answer, reference)
        if other[0] == "degree":
            return quantity[2] == "radian" and self._equal_values(quantity[1], other)
        if self._conventions.units == "required" or reference[3:] == ("word",):
            return False
        return self.equal(*(tree[1] if tree[0] == "unit" else tree for tree in (reference, answer)))

    def _equal_degrees(self, reference: Tree, answer: Tree) -> bool:
        """Whether angles are equal: 90° equals 90° and π/2, and also 90 if units are optional."""
        if self._conventions.units == "optional" and reference[0] != answer[0]:
            if self.equal(*(tree[1] if tree[0] == "degree" else tree for tree in (reference, answer))):
                return True
            definition = defined(answer)
            answer = definition[1] if definition else answer
        return not {reference[0], answer[0]} & _NO_VALUE and self._equal_values(reference, answer)

    def _equal_based(self, reference: Tree, answer: Tree) -> bool:
        """Whether digits and base are equal; an answer may omit the base if units are optional."""
        if reference[0] == answer[0]:
            return reference == answer
        return self._conventions.units == "optional" and reference[0] == "based" and answer == ("num", reference[1])

    def _equal_lists(self, reference: Tree, answer: Tree) -> bool:
        """Whether two lists or sets have the same elements, as values of the same variable if both name one."""
        (name, expected), (other, actual) = (
            _values(list(tree[2:] if tree[0] == "list" else dict.fromkeys(tree[1:]))) for tree in (reference, answer)
        )
        if len(expected) != len(actual) or (name and other and name != other):
            return False
        if self._conventions.order == "kept" and reference[0] == answer[0] == "list":
            return self._pairwise(expected, actual)
        for item in expected:
            place = next((n for n, each in enumerate(actual) if self._pairwise([item], [each])), None)
            if place is None:
                return False
            del actual[place]
        return True

    def _pairwise(self, expected: Sequence[Tree], actual: Sequence[Tree]) -> bool:
        """Whether two sequences are equal element by element; a relation never equals a bare value here."""
        return len(expected) == len(actual) and all(
            (a[0] == "rel") == (b[0] == "rel") and self.equal(a, b) for a, b in zip(expected, actual, strict=True)
        )

    def _equal_brackets(self, reference: Tree, answer: Tree) -> bool:
        """Whether ratios, tuples (an answer may omit the brackets), intervals or matrices in brackets are equal."""
        if reference[0] == answer[0]:
            start = 3 if reference[0] == "bracket" else 1
            return reference[1:start] == answer[1:start] and self._pairwise(reference[start:], answer[start:])
        if reference[:3] == ("bracket", "(", ")") and answer[:2] == ("list", ","):
            return self._pairwise(reference[3:], answer[2:])
        rows = [_rows(tree) for tree in (reference, answer)]
        return bool(rows[0] and rows[1]) and same_value(*(value(("matrix", *(row or ()))) for row in rows))

    def _equal_relations(self, reference: Tree, answer: Tree) -> bool:
        """Whether two relations are equal up to a constant factor; chains are compared side by side."""
        (operators, expected), (others, actual) = _ascending(reference), _ascending(answer)
        if operators != others:
            return False
        if len(operators) > 1 or operators[0] == "in" or expected[0][0] == "bracket":
            return self._pairwise(expected, actual)
        solution = defined(reference)
        if solution and not defined(answer) and not value(solution[1]).free_symbols:
            return False  # x = 5 is a solution, 2x = 10 is not
        differences = (value(left) - value(right) for left, right in (expected, actual))
        return proportional(*differences, positive=operators[0] not in {"=", "!="})

    def _equal_values(self, reference: Tree, answer: Tree) -> bool:
        expected, actual = value(reference), value(answer)
        if same_value(expected, actual):
            return True
        if self._conventions.percent == "number" and "percent" in (reference[0], answer[0]):
            return same_value(*(value(tree[1] if tree[0] == "percent" else tree) for tree in (reference, answer)))
        return self._rounds(reference, actual) or self._rounds(answer, expected)

    def _rounds(self, tree: Tree, exact: Any) -> bool:
        """Whether `tree` is a decimal with enough places that `exact`, which has no finite decimal, rounds to."""
        while tree[0] == "neg":
            tree, exact = tree[1], -exact
        if tree[0] != "num" or not self._conventions.decimals or isinstance(exact, sympy.MatrixBase):
            return False
        digits, places = tree[1].replace(".", "").lstrip("0"), len(tree[1].partition(".")[2])
        if not digits.isdigit() or min(places, len(digits)) < self._conventions.decimals or not exact.is_real:
            return False
        if exact.free_symbols or (exact.is_Rational and 10 ** (2 * places + 20) % exact.q == 0):
            return False
        return bool(abs(exact - number(tree[1])) <= sympy.Rational(1, 2 * 10**places))


def is_set(tree: Tree) -> bool:
    """Whether a tree must be a set: an inequality, a union, x in S, or an interval such as (1, 2]."""
    match tree:
        case ("rel", operators, *_):
            return any(operator != "=" for operator in operators)
        case ("list", "or" | "and", *items):
            return any(map(is_set, items))
        case ("bracket", opened, closed, _, _):
            return opened + closed in {"(]", "[)"}
    return tree[0] in _SET_OPERATIONS or tree == ("set",)


def defined(tree: Tree) -> tuple[Tree, Tree] | None:
    """Name and value in y = 2x + 1, f(x) = 2x, (x, y) = (1, 2) or x in {1, 2}; None for any other tree."""
    match tree:
        case ("rel", ("=",), left, right):
            pairs: tuple[tuple[Tree, Tree], ...] = ((left, right), (right, left))
        case ("rel", ("in",), left, ("set", *_) as right):
            pairs = ((left, right),)
        case _:
            return None
    return next((pair for pair in pairs if _is_name(pair[0]) and not _occurs(pair[0], pair[1])), None)


def _is_name(tree: Tree) -> bool:
    if tree[0] in {"mul", "bracket"}:  # AB = 5 is a length, (x, y) = (1, 2) a point
        return all(map(_is_name, tree[1:] if tree[0] == "mul" else tree[3:]))
    return tree[0] in {"sym", "apply"}


def _occurs(name: Tree, tree: Any) -> bool:
    return isinstance(tree, tuple) and (tree == name or any(_occurs(name, part) for part in tree))


def _values(items: list[Tree]) -> tuple[Tree | None, list[Tree]]:
    """The variable and the values in x = 1, x = 2 (or x = 1, 2); otherwise None and the unchanged items."""
    definitions = [defined(item) for item in items]
    names = {each[0] for each in definitions if each}
    pairs = list(zip(items, definitions, strict=True))
    if len(names) != 1 or not definitions[0] or any(item[0] == "rel" and not each for item, each in pairs):
        return None, items
    return definitions[0][0], [each[1] if each else item for item, each in pairs]


def _rows(tree: Tree) -> list[Tree] | None:
    """The rows of a matrix or of nested brackets, [[1, 2], [3, 4]]; None for any other tree."""
    if tree[0] == "matrix":
        return list(tree[1:])
    rows = tree[3:] if tree[:2] == ("bracket", "[") else ()
    if not rows or any(row[:2] != ("bracket", "[") or len(row) != len(rows[0]) for row in rows):
        return None
    return [row[3:] for row in rows]


def _ascending(tree: Tree) -> tuple[list[str], list[Tree]]:
    """Operators and sides of a relation, reversed if it uses > or >=."""
    operators, sides = list(tree[1]), list(tree[2:])
    if operators[0] in {">", ">="}:
        return [FLIPPED.get(operator, operator) for operator in reversed(operators)], sides[::-1]
    return operators, sides


def _unchained(tree: Tree) -> Tree:
    """5 for the chain 2 + 3 = 5, and x = 5 for x = 2 + 3 = 5, if the sides are equal; else the tree itself."""
    if tree[0] != "rel" or set(tree[1]) != {"="}:
        return tree
    named = len(tree) > 4 and _is_name(tree[2])
    sides = tree[3:] if named else tree[2:]
    try:
        if not all(same_value(value(side), value(sides[-1])) for side in sides):
            return tree
    except CannotCompare:
        return tree
    return ("rel", ("=",), tree[2], sides[-1]) if named else sides[-1]


def _without_signs(tree: Tree) -> Tree:
    """The list (or set) of both values of a tree with ±; other trees are unchanged."""
    if "'±'" not in str(tree) and "'∓'" not in str(tree):
        return tree
    head, items = (
        (tree[:2], tree[2:])
        if tree[0] == "list"
        else (tree[:1], tree[1:])
        if tree[0] == "set"
        else (("list", "or"), (tree,))
    )
    both = [[_signed(item, sign) for sign in (1, -1)] for item in items]
    return (*head, *(item for pair in both for item in (pair if pair[0] != pair[1] else pair[:1])))


def _signed(tree: Any, sign: int) -> Any:
    """The tree with each ± replaced by one of its signs."""
    match tree:
        case ("pm", mark, inside):
            return _signed(inside, sign) if (mark == "±") == (sign > 0) else ("neg", _signed(inside, sign))
        case tuple():
            return tuple(_signed(part, sign) for part in tree)
    return tree


def _tuples(tree: Any) -> Any:
    return tuple(map(_tuples, tree)) if isinstance(tree, list) else tree


def main() -> None:
    """Compare pairs until the input ends; null means that one of the trees has no value."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    comparison = Comparison(Conventions(*json.loads(sys.argv[1])))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        try:
            equal: bool | None = comparison.equal(*_tuples(json.loads(line)))
        except (CannotCompare, *REFUSALS):
            equal = None
        sys.stdout.write(json.dumps(equal) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
