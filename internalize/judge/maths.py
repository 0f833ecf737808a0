r"""Grades by mathematical equivalence: 1/2 = 0.5 = \frac{1}{2}. Needs the extra `maths` (SymPy).

If both texts parse completely as mathematics (formula.py), only the mathematical comparison can accept the answer. Any
other pair is compared as text (`match.same`). The comparison runs in another process, which is killed at the time
limit; the answer is then unscored.
"""

from __future__ import annotations

import asyncio
import json
import re
import select
import subprocess
import sys
import threading
from importlib.util import find_spec
from typing import NamedTuple

from internalize.errors import UserError
from internalize.records import Claim, Judgement

from .formula import Tree, read
from .match import same, same_choice, unmarked
from .notation import final

STARTING = 60.0  # seconds the process may take to import its libraries


class Conventions(NamedTuple):
    """Conventions for ambiguous answers; the keys of `[judge]` have the same names."""

    units: str = "optional"  # "optional": a unit may be missing on one side; "required"
    percent: str = "fraction"  # "fraction": 50% equals 0.5; "number": it also equals 50
    order: str = "any"  # "any": "1, 2" equals "2, 1"; "kept"
    decimals: int = 6  # a decimal with this many places equals a number that rounds to it; 0 = never


def trees(reference: str, answer: str) -> tuple[Tree, Tree] | None:
    """Both sides parsed, where one may resolve an ambiguity of the other; None if one of them is not mathematics."""
    expected, actual = read(reference), read(answer)
    if expected and actual and (expected[0] == "unit") != (actual[0] == "unit"):  # "5 m" beside "5\text{ m}"
        unit = str((expected if expected[0] == "unit" else actual)[2])
        expected, actual = read(reference, other_unit=unit), read(answer, other_unit=unit)
    elif expected or actual:  # "xy" beside "x \cdot y"
        expected, actual = expected or read(reference, products=True), actual or read(answer, products=True)
    return (expected, actual) if expected and actual else None


def _differ_in_case(reference: str, answer: str) -> bool:
    """Whether both are two letters that differ in case (AB and ab): names of quantities, in which case counts."""
    letters = [final(text) for text in (reference, answer)]
    return (
        all(re.fullmatch("[a-zA-Z]{2}", each) for each in letters)
        and len(set(letters)) == 2
        and letters[0].lower() != "no"
    )


class _Comparer:
    """The comparing process. It compares one pair at a time, and is restarted after a timeout or a crash."""

    def __init__(self, conventions: Conventions) -> None:
        self._conventions = json.dumps(conventions)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def compare(self, reference: Tree, answer: Tree, seconds: float) -> bool | str | None:
        """Whether both are equal; None if one of them has no value; a text if there is no verdict."""
        with self._lock:
            process = self._process or self._start()
            if process is None:
                return "the comparing process did not start"
            assert process.stdin
            assert process.stdout
            try:
                process.stdin.write(json.dumps([reference, answer]).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline() if _ready(process, seconds) else b""
            except BrokenPipeError:
                line = b""
            if not line:
                timed_out = process.poll() is None
                self.close()
                return f"no verdict within {seconds:g} s" if timed_out else "the comparing process died"
            verdict: bool | None = json.loads(line)
            return verdict

    def _start(self) -> subprocess.Popen[bytes] | None:
        command = [sys.executable, "-m", "internalize.judge.equivalence", self._conventions]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # noqa: S603 - our own module
        assert process.stdout
        self._process = process
        if not _ready(process, STARTING) or process.stdout.readline() != b"ready\n":
            self.close()
        return self._process

    def close(self) -> None:
        """Kill the process."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _ready(process: subprocess.Popen[bytes], seconds: float) -> bool:
    assert process.stdout
    return bool(select.select([process.stdout], [], [], seconds)[0])


class MathJudge:
    """Accepts an answer that equals the reference mathematically. Raises UserError without the extra `maths`."""

    name = "maths"

    def __init__(self, *, seconds: float = 5.0, conventions: Conventions | None = None) -> None:
        if find_spec("sympy") is None:
            raise UserError("the judge 'maths' needs the extra: pip install 'internalize[maths]'")
        self._seconds = seconds
        self._comparer = _Comparer(conventions or Conventions())

    async def judge(self, claim: Claim) -> Judgement:
        """1 or 0; unscored without a reference, after the time limit, or if the process dies."""
        if not claim.reference.strip():
            return Judgement(score=None, judge=self.name, reason="there is no reference to compare with")
        if same_choice(claim.reference, claim.answer):
            return Judgement(score=1.0, judge=self.name, reason="the same choice")
        pair = trees(claim.reference, claim.answer)
        if pair is None:
            equal = same(claim.reference, claim.answer) and not _differ_in_case(claim.reference, claim.answer)
            return Judgement(
                score=float(equal), judge=self.name, reason="compared as text, because one of them is not mathematics"
            )
        if unmarked(pair[0]) == unmarked(pair[1]):
            return Judgement(score=1.0, judge=self.name, reason="the same formula")
        verdict = await asyncio.to_thread(self._comparer.compare, *pair, self._seconds)
        if isinstance(verdict, str):
            return Judgement(score=None, judge=self.name, reason=verdict)
        reason = "one of the formulas has no value to compare" if verdict is None else ""
        return Judgement(score=float(bool(verdict)), judge=self.name, reason=reason)

    def close(self) -> None:
        """Kill the comparing process."""
        self._comparer.close()
