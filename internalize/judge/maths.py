r"""Mathematical equivalence: 1/2 = 0.5 = \frac{1}{2}, (x+1)^2 = x^2+2x+1. Needs the extra `maths` (SymPy).

Reference and answer are compared as mathematics if both can be read as mathematics as a whole (formula.py), and then
nothing else accepts. Any other pair is compared as text (`match.same`). The comparison runs in another process, which
is killed at the time limit; the answer is then unscored.
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
    """What mathematics leaves open; the keys of `[judge]` have the same names."""

    units: str = "optional"  # "optional": a unit may be missing on one side; "required"
    percent: str = "fraction"  # "fraction": 50% is 0.5; "number": it is 50 as well
    order: str = "any"  # "any": "1, 2" equals "2, 1"; "kept"
    decimals: int = 6  # a decimal of so many places equals a number that rounds to it; 0 = never


def trees(reference: str, answer: str) -> tuple[Tree, Tree] | None:
    """Both sides as mathematics, each read with what the other one tells about it; None if one of them is none."""
    wanted, given = read(reference), read(answer)
    if wanted and given and (wanted[0] == "unit") != (given[0] == "unit"):  # "5 m" beside "5\text{ m}"
        unit = str((wanted if wanted[0] == "unit" else given)[2])
        wanted, given = read(reference, other_unit=unit), read(answer, other_unit=unit)
    elif wanted or given:  # "xy" beside "x \cdot y"
        wanted, given = wanted or read(reference, products=True), given or read(answer, products=True)
    return (wanted, given) if wanted and given else None


def _differ_in_case(reference: str, answer: str) -> bool:
    """Whether two answers are two letters each, such as AB and ab: names of quantities, in which case counts."""
    letters = [final(text) for text in (reference, answer)]
    return (
        all(re.fullmatch("[a-zA-Z]{2}", each) for each in letters)
        and len(set(letters)) == 2
        and letters[0].lower() != "no"
    )


class _Comparer:
    """The other process. One question at a time; killed and started anew when it is late or has died."""

    def __init__(self, conventions: Conventions) -> None:
        self._conventions = json.dumps(conventions)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def compare(self, reference: Tree, answer: Tree, seconds: float) -> bool | str | None:
        """Whether both are equal, None if one of them has no value, or why there is no verdict."""
        with self._lock:
            process = self._process or self._started()
            if process is None:
                return "the comparing process does not start"
            assert process.stdin
            assert process.stdout
            try:
                process.stdin.write(json.dumps([reference, answer]).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline() if _ready(process, seconds) else b""
            except BrokenPipeError:
                line = b""
            if not line:
                late = process.poll() is None
                self.close()
                return f"no verdict within {seconds:g} s" if late else "the comparing process died"
            verdict: bool | None = json.loads(line)
            return verdict

    def _started(self) -> subprocess.Popen[bytes] | None:
        command = [sys.executable, "-m", "internalize.judge.equivalence", self._conventions]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # noqa: S603 - our own module
        assert process.stdout
        self._process = process
        if not _ready(process, STARTING) or process.stdout.readline() != b"ready\n":
            self.close()
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _ready(process: subprocess.Popen[bytes], seconds: float) -> bool:
    assert process.stdout
    return bool(select.select([process.stdout], [], [], seconds)[0])


class MathJudge:
    """Accepts what equals the reference mathematically. Raises UserError if the extra is not installed."""

    name = "maths"

    def __init__(self, *, seconds: float = 5.0, conventions: Conventions | None = None) -> None:
        if find_spec("sympy") is None:
            raise UserError("the judge 'maths' needs the extra: pip install 'internalize[maths]'")
        self._seconds = seconds
        self._comparer = _Comparer(conventions or Conventions())

    async def judge(self, claim: Claim) -> Judgement:
        """1 or 0; unscored without a reference, beyond the time limit or when the process dies."""
        if not claim.reference.strip():
            return Judgement(score=None, judge=self.name, reason="there is no reference to compare with")
        if same_choice(claim.reference, claim.answer):
            return Judgement(score=1.0, judge=self.name, reason="the same choice")
        found = trees(claim.reference, claim.answer)
        if found is None:
            equal = same(claim.reference, claim.answer) and not _differ_in_case(claim.reference, claim.answer)
            return Judgement(score=float(equal), judge=self.name, reason="compared as text: not both are mathematics")
        if unmarked(found[0]) == unmarked(found[1]):
            return Judgement(score=1.0, judge=self.name, reason="the same formula")
        verdict = await asyncio.to_thread(self._comparer.compare, *found, self._seconds)
        if isinstance(verdict, str):
            return Judgement(score=None, judge=self.name, reason=verdict)
        reason = "one of the formulas has no value to compare" if verdict is None else ""
        return Judgement(score=float(bool(verdict)), judge=self.name, reason=reason)

    def close(self) -> None:
        """End the process that compares."""
        self._comparer.close()
