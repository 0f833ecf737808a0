"""Trajectories as text for a prompt: whole if they fit, else without some steps, but with the first and the last.

The text names what was cut: which steps, and how long a text was. A long observation or action is cut after a line or a
sentence, and inside a sentence only if that alone is too long.
"""

from __future__ import annotations

from collections.abc import Sequence

from internalize.records import Step, Trajectory

CHARACTERS = 3  # per token: about four in English; three leaves room for names and code
_ENDS = ("\n", ". ", "! ", "? ")  # the end of a line or a sentence
_LEAST = 160  # characters kept of the longest text before another step is given up


def outcome(trajectory: Trajectory) -> str:
    """How a scored episode ended."""
    score = trajectory.score or 0.0
    word = "success" if score >= 1 else "failure" if score <= 0 else "partial success"
    return f"{word} (score {score:g}, ended by: {trajectory.termination})"


def clip(text: str, limit: int) -> str:
    """`text` in at most `limit` characters: whole lines or sentences from its start, and a note on what is cut."""
    if len(text) <= limit:
        return text
    note = f" [... {len(text)} characters in all, the rest is left out]"
    room = max(0, limit - len(note))
    last = max(text.rfind(end, 0, room + 1) + len(end) - 1 for end in _ENDS)
    kept = text[: last if last > 0 else room]
    if last <= 0 and " " in kept.strip():  # one long sentence: after a word
        kept = kept.rsplit(None, 1)[0]
    return (kept.rstrip() + note)[: max(limit, 0)]


def transcript(trajectory: Trajectory, limit: int) -> str:
    """The steps in at most `limit` characters (a few more when `limit` is below some hundred)."""
    each = max((len(text) for step in trajectory.steps for text in (step.text, step.observation or "")), default=0)
    while True:
        blocks = [_block(number, step, each) for number, step in enumerate(trajectory.steps, start=1)]
        if sum(len(block) + 1 for block in blocks) <= limit:
            return "\n".join(blocks)
        if each <= _LEAST:
            return "\n".join(_from_both_ends(blocks, limit))
        each = max(_LEAST, each // 2)


def _block(number: int, step: Step, each: int) -> str:
    seen = "the episode ended" if step.observation is None else clip(step.observation.strip(), each)
    return f"Step {number}: {clip(step.text.strip(), each)}\nSeen: {seen}"


def _from_both_ends(blocks: Sequence[str], room: int) -> list[str]:
    """The first and the last step, and as many steps as fit, taken from both ends."""
    if len(blocks) <= 2:
        return [clip(block, max(_LEAST, room // max(1, len(blocks)))) for block in blocks]
    early, late = 1, 1
    used = len(blocks[0]) + len(blocks[-1]) + 60  # the line that says what is missing
    while early + late < len(blocks) - 1:
        take_early = early <= late
        block = blocks[early] if take_early else blocks[-1 - late]
        used += len(block) + 1
        if used > room:
            break
        early, late = early + take_early, late + (not take_early)
    first, last = early + 1, len(blocks) - late
    missing = f"[steps {first} to {last} left out]" if last > first else f"[step {first} left out]"
    return [*blocks[:early], missing, *blocks[len(blocks) - late :]]
