r"""Parses mathematical notation, LaTeX or plain, into a tree of tuples: ("div", ("num", "1"), ("num", "2")).

The parser rejects all notation that it does not know, because skipping a character could make two different formulas
equal. It also rejects ambiguous notation (a/bc, 3\frac{7}{2}). Rejected texts are compared as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .notation import final, quantity, to_latex
from .tokens import ACCENTS, Cursor, NoFormula, Token, tokens

Tree = tuple[Any, ...]
LONGEST = 500  # characters; a longer text is not read as a formula
_DATE = re.compile(r"\d+([-/.])\d+\1\d+(?:\1\d+)*")
_BASED = re.compile(r"([\dA-F]+)\s*_\s*\{?\s*([2-9]|[12]\d|3[0-6])\s*\}?")
_CLOSING = {"(": (")", "]"), "[": (")", "]"), "{": ("}",), "\\{": ("\\}",), "\\langle": ("\\rangle",)}
_INVERTIBLE = frozenset({"sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh"})
_MATRICES = frozenset({"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array", "vmatrix"})


def read(text: str, *, products: bool = False, other_unit: str = "") -> Tree | None:
    """The tree of the answer in a response; None unless all of it is mathematics.

    A single word such as "ab" is only accepted with `products`, as a product. `other_unit`: see `quantity`.
    """
    text = to_latex(final(text))
    if len(text) > LONGEST or _DATE.fullmatch(text):
        return None
    if based := _BASED.fullmatch(text):
        return ("based", based[1].lstrip("0") or "0", based[2])
    parts = quantity(text, other_unit)
    try:
        tree = Reader(tokens(parts.formula), products=products).whole()
    except (NoFormula, RecursionError):
        return None
    if parts.power:
        tree = ("mul", tree, ("pow", ("num", "10"), ("num", str(parts.power))))
    return ("unit", tree, parts.unit, "word" if parts.is_word else "mark") if parts.unit else tree


class Reader(Cursor):
    """A recursive-descent parser with one method for each level of precedence."""

    def __init__(self, token_list: list[Token], *, products: bool) -> None:
        super().__init__(token_list)
        self._products, self._bars = products, 0
        self._atoms: dict[str, Callable[[str], Tree]] = {
            **dict.fromkeys(_CLOSING, self._bracket),
            **dict.fromkeys(("|", "\\lfloor", "\\lceil"), self._fenced),
            **dict.fromkeys(("\\frac", "\\binom"), self._fraction),
            **dict.fromkeys(("\\sqrt", "\\cuberoot"), self._root),
            **dict.fromkeys(("\\sum", "\\prod"), self._series),
            **{f"\\{name}": self._accented for name in ACCENTS},
            **{f"begin {name}": self._matrix for name in _MATRICES},
            "\\mathbb": lambda _: ("numbers", self._raw()),
            "∞": lambda _: ("const", "inf"),
            "\\emptyset": lambda _: ("set",),
        }

    # -- from lists to products

    def whole(self) -> Tree:
        """The tree of all tokens."""
        tree = self._over(self._listing())
        if self._token.kind or not self._tokens:
            raise NoFormula
        return tree

    def _listing(self) -> Tree:
        """One element, or several between commas, "and" or "or"."""
        items, marks = [self._element()], set()
        while mark := self._take(",", ";", "and", "or"):
            marks.add(self._take("and", "or") or mark)
            items.append(self._element())
        return ("list", next((word for word in ("or", "and") if word in marks), ","), *items) if marks else items[0]

    def _element(self) -> Tree:
        """A relation, a ratio or an expression; a single word of several letters is refused without `products`."""
        self._take("\\approx")
        start = self._place
        sides, operators = [self._union()], []
        while operator := self._take("=", "<", ">", "<=", ">=", "!=", "in", ":", "\\approx"):
            side = self._union()
            if operator != "\\approx" or sides[-1][0] == "sym":  # in √5 ≈ 2.236 the exact side counts
                operators.append("=" if operator == "\\approx" else operator)
                sides.append(side)
        runs = {token.run for token in self._tokens[start : self._place]}
        if self._place - start > 1 and len(runs) == 1 and -1 not in runs and not self._products:
            raise NoFormula
        if ":" not in operators:
            return ("rel", tuple(operators), *sides) if operators else sides[0]
        if set(operators) != {":"}:
            raise NoFormula
        return ("ratio", *sides)

    def _union(self) -> Tree:
        tree = self._sum()
        while operator := self._take("cup", "cap", "minus"):
            tree = (operator, tree, self._sum())
        return tree

    def _sum(self) -> Tree:
        sign = self._take("±", "∓")
        tree: Tree = ("pm", sign, self._product()) if sign else self._product()
        while sign := self._take("+", "-", "±", "∓"):
            right = self._product()
            tree = ("add", tree, {"+": right, "-": ("neg", right)}.get(sign, ("pm", sign, right)))
        return tree

    def _product(self) -> Tree:
        if sign := self._take("-", "+"):
            tree = self._product()
            return ("neg", tree) if sign == "-" else tree
        tree = self._power()
        while True:
            if self._take("*"):
                tree = ("mul", tree, self._signed())
            elif self._take("/"):
                denominator = self._signed()
                if self._starts_factor() and (tree[0], denominator[0]) != ("num", "num"):
                    raise NoFormula  # a/bc; but 1/2x is half of x
                tree = ("div", tree, denominator)
            elif self._starts_factor():
                tree = ("mul", tree, self._power())
            else:
                return tree

    def _signed(self) -> Tree:
        if sign := self._take("-", "+"):
            return ("neg", self._signed()) if sign == "-" else self._signed()
        return self._power()

    def _starts_factor(self) -> bool:
        """Whether the next token is another factor of a product without an operator."""
        token = self._token
        if token.kind == "num":
            raise NoFormula  # x2, 5 7
        if token.kind == "sym" and token.spaced and self._tokens[self._place - 1].kind == "num":
            following = self._tokens[self._place + 1 : self._place + 2]
            if following and following[0].run == token.run >= 0:
                raise NoFormula  # 5 May
        if token.text == "|":
            return self._bars == 0
        return token.kind in {"sym", "fun"} or (token.text in self._atoms and token.text not in {"∞", "\\emptyset"})

    # -- powers and postfix operators

    def _power(self) -> Tree:
        tree = self._postfixed(self._atom())
        if not self._take("^"):
            return tree
        if self._braced("°"):
            return self._postfixed(("degree", tree))
        tree = ("pow", tree, self._exponent())
        if self._token.text in {"!", "^", "%", "'"}:
            raise NoFormula
        return tree

    def _exponent(self) -> Tree:
        if sign := self._take("-", "+"):
            return ("neg", self._exponent()) if sign == "-" else self._exponent()
        base = self._atom(mixed=False)
        return ("pow", base, self._exponent()) if self._take("^") else base

    def _postfixed(self, tree: Tree) -> Tree:
        while mark := self._take("!", "%", "°"):
            if mark == "!" and self._take("!"):
                mark = "!!"
            tree = ({"!": "fact", "!!": "fact2", "%": "percent", "°": "degree"}[mark], tree)
        return tree

    # -- atoms

    def _atom(self, *, mixed: bool = True) -> Tree:
        kind, text = self._token.kind, self._token.text
        if kind == "num":
            return self._mixed() if mixed else ("num", self._any("num"))
        if kind in {"sym", "fun"}:
            return self._symbol() if kind == "sym" else self._function()
        if text not in self._atoms:
            raise NoFormula
        return self._atoms[text](self._any("op"))

    def _mixed(self) -> Tree:
        r"""A number or a mixed number: 3 1/2, 3\frac{1}{2}."""
        whole = self._any("num")
        place, following = self._place, self._token
        if not whole.isdigit() or (following.kind != "num" and following.text != "\\frac"):
            return ("num", whole)
        if following.kind == "num":
            top = self._any("num")
            self._need("/")
            fraction: Tree = ("div", ("num", top), ("num", self._any("num")))
        else:
            fraction = self._atom()
        if fraction[1][0] != "num" or fraction[2][0] != "num":
            self._place = place
            return ("num", whole)
        top, bottom = fraction[1][1], fraction[2][1]
        if (
            not (following.spaced or following.text == "\\frac")
            or not (top + bottom).isdigit()
            or int(top) >= int(bottom)
        ):
            raise NoFormula  # 3 7/2 may be a product or a sum
        return ("add", ("num", whole), fraction)

    def _symbol(self) -> Tree:
        first = self._token
        name = self._any("sym")
        if name in {"pi", "e", "i"} and self._token.text not in {"_", "'"}:
            return ("const", name)
        name += self._marks()
        alone = sum(token.run == first.run for token in self._tokens) == 1
        if self._token.text == "(" and not self._token.spaced and alone and self._is_function(name):
            self._need("(")
            return ("apply", name, *self._items(")"))
        return ("sym", name)

    def _marks(self) -> str:
        """Subscript and primes of a symbol."""
        marks = f"_{self._raw()}" if self._take("_") else ""
        place = self._place
        if self._take("^") and self._braced("'"):
            return f"{marks}'"
        self._place = place
        while self._take("'"):
            marks += "'"
        return marks

    def _is_function(self, name: str) -> bool:
        """Whether a letter before a bracket names a function: f and g always do, some only before a single argument."""
        if name[0] in "fgFG" or name.endswith("'"):
            return True
        inside = self._tokens[self._place + 1 : self._place + 3]
        single = len(inside) == 2 and inside[0].kind in {"sym", "num"} and inside[1].text in {")", ","}
        return name[0] in "hHPQ" and single

    def _accented(self, accent: str) -> Tree:
        return ("sym", f"{ACCENTS[accent[1:]]}{{{self._raw()}}}{self._marks()}")

    def _bracket(self, opened: str) -> Tree:
        bars, self._bars = self._bars, 0
        items: tuple[Tree, ...] = ()
        is_condition = (opened == "\\{" or (opened == "{" and self._place == 1)) and self._builder()
        if self._token.text not in _CLOSING[opened]:
            inside = self._over(self._listing())
            items = inside[2:] if inside[:2] == ("list", ",") else (inside,)
        closed = self._need(*_CLOSING[opened])
        if not items and opened not in {"{", "\\{"}:
            raise NoFormula
        self._bars = bars
        if is_condition or (len(items) == 1 and (opened == "{" or opened + closed == "()" or items[0][0] == "matrix")):
            if len(items) != 1 or (is_condition and items[0][0] not in {"rel", "list"}):
                raise NoFormula
            return items[0]
        return ("set", *items) if opened in {"{", "\\{"} else ("bracket", opened, closed, *items)

    def _builder(self) -> bool:
        r"""Whether a set is written as \{x | ...\}; if so, skips the part before the condition."""
        following = self._tokens[self._place + 1 : self._place + 2]
        is_bar = bool(following) and following[0].spaced and following[0].text in {"|", ":", "\\mid"}
        is_builder = self._token.kind == "sym" and is_bar
        self._place += 2 * is_builder
        return is_builder

    def _items(self, closing: str) -> tuple[Tree, ...]:
        inside = self._listing()
        self._need(closing)
        return inside[2:] if inside[0] == "list" else (inside,)

    def _over(self, tree: Tree) -> Tree:
        r"""The tree of {3 \over 4} or {5 \choose 2} after its first part has been read."""
        if mark := self._take("\\over", "\\choose"):
            right = self._listing()
            return ("div", tree, right) if mark == "\\over" else ("call", "binom", tree, right)
        return tree

    def _fenced(self, opened: str) -> Tree:
        self._bars += opened == "|"
        inside = self._sum()
        self._need({"|": "|", "\\lfloor": "\\rfloor"}.get(opened, "\\rceil"))
        self._bars -= opened == "|"
        name = "det" if inside[0] == "matrix" else "abs"
        return ("call", {"\\lfloor": "floor", "\\lceil": "ceil"}.get(opened, name), inside)

    def _fraction(self, command: str) -> Tree:
        first, second = self._argument(), self._argument()
        if self._token.kind == "num" and not self._token.spaced:
            raise NoFormula  # \frac123
        return ("div", first, second) if command == "\\frac" else ("call", "binom", first, second)

    def _argument(self) -> Tree:
        r"""An argument of \frac or \binom: a group, or a single digit or letter (\frac12)."""
        token = self._token
        if token.kind == "num" and len(token.text) > 1:
            if not token.text.isdigit():
                raise NoFormula
            self._tokens[self._place] = token._replace(text=token.text[1:], spaced=False)
            return ("num", token.text[0])
        if token.kind == "op" and token.text != "{":
            raise NoFormula
        return self._atom(mixed=False)

    def _root(self, command: str) -> Tree:
        degree: Tree = ("num", "3" if command == "\\cuberoot" else "2")
        if command == "\\sqrt" and self._take("["):
            degree = self._sum()
            self._need("]")
        bare = self._token.kind
        inside = self._atom(mixed=False)
        if bare in {"num", "sym"} and self._token.kind == "sym" and not self._token.spaced:
            raise NoFormula  # √2x may be the root of 2 or of 2x
        return ("root", inside, degree)

    def _function(self) -> Tree:
        name = self._any("fun")
        power: Tree | None = None
        base: tuple[Tree, ...] = ()
        while mark := self._take("_", "^"):
            if mark == "_" and name == "log" and not base:
                base = (self._atom(mixed=False),)
            elif mark == "^" and not power:
                power = self._exponent()
            else:
                raise NoFormula
        if power == ("neg", ("num", "1")) and name in _INVERTIBLE:
            name, power = f"arc{name}", None
        opened = self._take("(", "{", "[")
        arguments = self._items({"(": ")", "{": "}", "[": "]"}[opened]) if opened else (self._open_argument(),)
        tree: Tree = ("call", name, *arguments, *base)
        return ("pow", tree, power) if power else tree

    def _open_argument(self) -> Tree:
        """The argument of a function without brackets: all factors up to an operator, a bracket or a function."""
        if sign := self._take("-", "+"):
            return ("neg", self._open_argument()) if sign == "-" else self._open_argument()
        tree = self._power()
        while self._token.kind != "fun" and self._token.text not in {"(", "["} and self._starts_factor():
            tree = ("mul", tree, self._power())
        return tree

    def _series(self, command: str) -> Tree:
        self._need("_")
        self._need("{")
        variable = self._any("sym")
        self._need("=")
        low = self._sum()
        self._need("}")
        self._need("^")
        return (command[1:], variable, low, self._exponent(), self._product())

    def _matrix(self, begin: str) -> Tree:
        rows = [[self._sum()]]
        while mark := self._take("&", "\\\\"):
            if mark == "&":
                rows[-1].append(self._sum())
            elif self._token.text != "end":
                rows.append([self._sum()])
        self._need("end")
        tree = ("matrix", *map(tuple, rows))
        return ("call", "det", tree) if begin == "begin vmatrix" else tree
