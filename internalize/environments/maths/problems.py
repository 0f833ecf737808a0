"""Mathematical problems with exact answers, generated from a seed, in families that deepen with the difficulty.

    arithmetic   nested sums, products and fractions          modular    powers and remainders, simultaneous ones
    numbers      divisors, totients, primes in an interval    linear     systems of 2 to 5 equations in integers
    sequences    recurrences                                  counting   paths around holes, change, divisibility
    calendar     weekdays, days between dates

Each problem has a Python program that finds its answer in another way than the generator, so that running it checks
both. A problem depends only on seed, family, difficulty and its number, and its split only on its text: the order of
the random draws below must not change.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from random import Random
from typing import NamedTuple

from internalize.environments.question_files import SPLITS, split_of
from internalize.errors import TaskError

_MAX_DRAWS = 200  # draws per wanted problem before a family counts as too small
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


class Problem(NamedTuple):
    """A question, its answer, and a program that prints the answer."""

    question: str
    answer: str
    program: str


def arithmetic(rng: Random, difficulty: int) -> Problem:
    """A nested expression of integers, from difficulty 3 on of fractions."""
    value, shown, code = _expression(rng, difficulty + 1, fractions=difficulty >= 3)
    hint = " Give an exact fraction." if value.denominator > 1 else ""
    return Problem(f"What is {shown}?{hint}", str(value), f"from fractions import Fraction\nprint({code})")


def _expression(rng: Random, depth: int, *, fractions: bool) -> tuple[Fraction, str, str]:
    """The value of a random expression, its text, and its Python code."""
    if depth == 0:
        value = Fraction(rng.randint(2, 30), rng.choice((2, 3, 4, 5, 6)) if fractions else 1)
        return value, str(value), f"Fraction({value.numerator}, {value.denominator})" if fractions else str(value)
    left, first, code = _expression(rng, depth - 1, fractions=fractions)
    right, second, further = _expression(rng, rng.randint(0, depth - 1), fractions=fractions)
    sign = rng.choice("+-*")
    value = left + right if sign == "+" else left - right if sign == "-" else left * right
    return value, f"({first} {sign} {second})", f"({code} {sign} {further})"


def modular(rng: Random, difficulty: int) -> Problem:
    """A power's remainder, or the least number with given remainders."""
    if rng.random() < 0.5:
        base, power, modulus = rng.randint(2, 99), rng.randint(10, 10 ** (difficulty + 1)), rng.randint(7, 999)
        answer = 1
        for bit in f"{power:b}":
            answer = answer * answer % modulus * (base if bit == "1" else 1) % modulus
        question = f"What is the remainder of {base}^{power} divided by {modulus}?"
        return Problem(question, str(answer), f"print(pow({base}, {power}, {modulus}))")
    moduli = rng.sample((3, 4, 5, 7, 11, 13, 17, 19), min(2 + difficulty // 2, 4))
    answer = rng.randrange(1, math.prod(moduli))
    pairs = [(answer % m, m) for m in moduli]
    remainders = ", ".join(f"{r} when divided by {m}" for r, m in pairs)
    program = f"print(next(n for n in range(1, 10**6) if all(n % m == r for r, m in {pairs})))"
    return Problem(
        f"Which is the least positive integer that leaves the remainders {remainders}?", str(answer), program
    )


def numbers(rng: Random, difficulty: int) -> Problem:
    """Divisors, totients and primes."""
    primes = [rng.choice((5, 7, 11, 13))]
    while (number := math.prod(primes)) <= 10 ** min(difficulty + 1, 5):
        primes.append(rng.choice((2, 2, 3, 3, 5, 7, 11, 13)))
    powers = {p: primes.count(p) for p in primes}
    program = f"n = {number}\ndivisors = [d for d in range(1, n + 1) if n % d == 0]\n"
    kind = rng.randrange(4)
    if kind == 0:
        count = math.prod(power + 1 for power in powers.values())
        return Problem(f"How many positive divisors has {number}?", str(count), program + "print(len(divisors))")
    if kind == 1:
        total = math.prod((p ** (power + 1) - 1) // (p - 1) for p, power in powers.items())
        question = f"What is the sum of the positive divisors of {number}?"
        return Problem(question, str(total), program + "print(sum(divisors))")
    if kind == 2:
        totient = math.prod(p ** (power - 1) * (p - 1) for p, power in powers.items())
        counted = f"from math import gcd\nprint(sum(gcd(k, {number}) == 1 for k in range(1, {number} + 1)))"
        return Problem(f"How many integers from 1 to {number} share no factor with {number}?", str(totient), counted)
    low = rng.randint(2, 10 ** min(difficulty + 1, 5))
    high = low + rng.randint(20, 60 * difficulty)
    sieve = bytearray(b"\1") * (high + 1)
    for p in range(2, math.isqrt(high) + 1):
        sieve[p * p :: p] = bytes(len(sieve[p * p :: p]))
    tried = f"print(sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range({low}, {high} + 1)))"
    return Problem(f"How many primes are there from {low} to {high}, both included?", str(sum(sieve[low:])), tried)


def linear(rng: Random, difficulty: int) -> Problem:
    """A system with one solution, in integers; asks for one unknown or the sum of all."""
    size = min(2 + difficulty // 2, 5)
    names = "xyzuv"[:size]
    solution = [rng.randint(-9, 9) for _ in range(size)]
    rows = [[rng.randint(1, 3 + 2 * difficulty) * rng.choice((1, -1)) for _ in range(size)] for _ in range(size)]
    for i in range(size):  # a dominant diagonal makes the solution unique
        rows[i][i] = sum(map(abs, rows[i])) + 1
    sums = [sum(a * s for a, s in zip(row, solution, strict=True)) for row in rows]
    equations = "; ".join(f"{_left_side(row, names)} = {total}" for row, total in zip(rows, sums, strict=True))
    if rng.random() < 0.3:
        answer, wanted = sum(solution), " + ".join(names)
    else:
        place = rng.randrange(size)
        answer, wanted = solution[place], names[place]
    matrix = [[*row, total] for row, total in zip(rows, sums, strict=True)]
    program = (
        f"from fractions import Fraction\nm = [[Fraction(c) for c in r] for r in {matrix}]\n"
        f"for i in range({size}):\n    m[i] = [c / m[i][i] for c in m[i]]\n"
        f"    m = [r if j == i else [a - r[i] * b for a, b in zip(r, m[i])] for j, r in enumerate(m)]\n"
        f"{', '.join(names)} = [r[-1] for r in m]\nprint({wanted})"
    )
    return Problem(f"What is {wanted} if {equations}?", str(answer), program)


def _left_side(row: list[int], names: str) -> str:
    text = " ".join(f"{'-' if a < 0 else '+'} {abs(a)}{n}" for a, n in zip(row, names, strict=True))
    return text.removeprefix("+ ").replace("- ", "-", 1) if text[0] == "-" else text.removeprefix("+ ")


def sequences(rng: Random, difficulty: int) -> Problem:
    """A term of a recurrence of one or two terms back."""
    first, second, p, q, r = (rng.randint(1, 9) for _ in range(5))
    q = q if difficulty > 1 else 0
    place = rng.randint(4 + difficulty, 6 + 3 * difficulty)
    terms = [first, second]
    while len(terms) < place:
        terms.append(p * terms[-1] + q * terms[-2] + r)
    rule = f"a(n) = {p}*a(n-1)" + (f" + {q}*a(n-2)" if q else "") + f" + {r}"
    program = f"a, b = {first}, {second}\nfor _ in range({place} - 2):\n    a, b = b, {p} * b + {q} * a + {r}\nprint(b)"
    question = f"What is a({place}) if a(1) = {first}, a(2) = {second} and {rule} for n > 2?"
    return Problem(question, str(terms[-1]), program)


def counting(rng: Random, difficulty: int) -> Problem:
    """Paths around holes, ways to give change, or numbers by divisibility."""
    kind = rng.randrange(3)
    if kind == 0:
        return _paths(rng, difficulty)
    if kind == 1:
        return _change(rng, difficulty)
    a, b, c = rng.sample(range(2, 6 + 4 * difficulty), 3)
    most = rng.randint(50, 10 ** (difficulty + 2))
    joint = math.lcm(a, b)
    count = sum(most // d for d in (a, b)) - most // joint
    count -= sum(most // math.lcm(d, c) for d in (a, b)) - most // math.lcm(joint, c)
    question = f"How many integers from 1 to {most} are divisible by {a} or by {b}, but not by {c}?"
    program = f"print(sum((n % {a} == 0 or n % {b} == 0) and n % {c} != 0 for n in range(1, {most} + 1)))"
    return Problem(question, str(count), program)


def _paths(rng: Random, difficulty: int) -> Problem:
    wide, high = rng.randint(3, 3 + difficulty), rng.randint(3, 3 + difficulty)
    cells = [(x, y) for x in range(wide + 1) for y in range(high + 1)][1:-1]
    holes = sorted(rng.sample(cells, min(difficulty, 4)))
    ways = {(0, 0): 1}
    for x in range(wide + 1):
        for y in range(high + 1):
            if (x, y) != (0, 0):
                ways[x, y] = 0 if (x, y) in holes else ways.get((x - 1, y), 0) + ways.get((x, y - 1), 0)
    program = (
        f"from itertools import combinations\nholes = {holes}\ncount = 0\n"
        f"for up in combinations(range({wide + high}), {high}):\n    x = y = 0\n    ok = True\n"
        f"    for i in range({wide + high}):\n        x, y = (x, y + 1) if i in up else (x + 1, y)\n"
        "        ok = ok and (x, y) not in holes\n    count += ok\nprint(count)"
    )
    question = (
        f"How many paths lead from (0, 0) to ({wide}, {high}) in steps of one to the right or one up, "
        f"without touching {', '.join(map(str, holes))}?"
    )
    return Problem(question, str(ways[wide, high]), program)


def _change(rng: Random, difficulty: int) -> Problem:
    coins = sorted(rng.sample((1, 2, 3, 5, 7, 10, 20, 25), 2 + min(difficulty, 3)))
    total = rng.randint(15, 30 + 15 * difficulty)
    ways = [1] + [0] * total
    for coin in coins:
        for amount in range(coin, total + 1):
            ways[amount] += ways[amount - coin]
    program = (
        f"from functools import cache\n@cache\ndef ways(left, coins):\n    if not coins:\n        return left == 0\n"
        "    return sum(ways(left - k, coins[1:]) for k in range(0, left + 1, coins[0]))\n"
        f"print(int(ways({total}, {tuple(coins)})))"
    )
    question = f"In how many ways can {total} cents be paid with coins of {', '.join(map(str, coins))} cents?"
    return Problem(question, str(ways[total]), program)


def calendar(rng: Random, difficulty: int) -> Problem:
    """Weekdays and distances between dates of the Gregorian calendar."""
    years = 3 * 4**difficulty
    start = dt.date(2000 + rng.randint(-min(years, 400), min(years, 400)), rng.randint(1, 12), rng.randint(1, 28))
    days = rng.randint(20, 300 * 3**difficulty)
    end = start + dt.timedelta(days)
    if rng.random() < 0.5:
        answer = _DAYS[(start.weekday() + days) % 7]
        first = (start.year, start.month, start.day)
        program = f"import datetime as d\nprint((d.date{first} + d.timedelta({days})).strftime('%A'))"
        return Problem(f"Which weekday is {days} days after {start.isoformat()}?", answer, program)
    program = (
        f"import calendar as c\nn = 0\ny, m, k = {start.year}, {start.month}, {start.day}\n"
        f"while (y, m, k) != {end.year, end.month, end.day}:\n    n += 1\n    k += 1\n"
        "    if k > c.monthrange(y, m)[1]:\n        k, m = 1, m + 1\n    if m > 12:\n        m, y = 1, y + 1\nprint(n)"
    )
    return Problem(f"How many days after {start.isoformat()} is {end.isoformat()}?", str(days), program)


FAMILIES: dict[str, Callable[[Random, int], Problem]] = {
    make.__name__: make for make in (arithmetic, modular, numbers, linear, sequences, counting, calendar)
}


def problems(family: str, difficulty: int, seed: int) -> Iterator[Problem]:
    """An endless stream of problems; some may repeat."""
    for number in itertools.count():
        yield FAMILIES[family](Random(f"{seed} {family} {difficulty} {number}"), difficulty)


def problems_by_split(family: str, difficulty: int, seed: int, sizes: dict[str, int]) -> dict[str, list[Problem]]:
    """As many different problems for each split as `sizes` asks for. Raises TaskError if the family has too few."""
    found: dict[str, dict[str, Problem]] = {split: {} for split in SPLITS}
    for problem in itertools.islice(problems(family, difficulty, seed), _MAX_DRAWS * sum(sizes.values())):
        split = split_of(problem.question)
        if len(found[split]) < sizes[split]:
            found[split].setdefault(problem.question, problem)
            if all(len(found[split]) >= sizes[split] for split in SPLITS):
                return {split: list(listed.values()) for split, listed in found.items()}
    raise TaskError(f"maths: too few problems in {family!r} at difficulty {difficulty}; lower size or raise difficulty")
