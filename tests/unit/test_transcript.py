"""Trajectories as text: whole, or cut where it does not hurt, and said so."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from internalize.experience.extract.transcript import clip, outcome, transcript
from tests.writer import attempt

WORDS = st.text("ab. \n?!", max_size=400)


@settings(max_examples=150, deadline=None)
@given(WORDS, st.integers(0, 400))
def test_a_cut_text_keeps_whole_sentences_and_says_how_much_there_was(text: str, limit: int) -> None:
    found = clip(text, limit)
    assert len(found) <= limit
    if len(text) <= limit:
        assert found == text
    elif limit > 70:
        kept, note = found[: found.rindex(" [... ")], found[found.rindex(" [... ") :]
        assert text.startswith(kept)
        assert f"{len(text)} characters in all" in note
        rest = text[len(kept) :]
        whole = kept.endswith((".", "!", "?")) or rest.lstrip(" ").startswith("\n") or not kept
        assert whole or not re.search(r"[.!?] |\n", text[: limit - len(note)].rstrip())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(0, 3000), st.integers(900, 9000))
def test_a_transcript_fits_and_keeps_the_first_and_the_last_step(steps: int, size: int, limit: int) -> None:
    found = transcript(attempt(1, 1.0, steps=steps, size=size), limit)
    assert len(found) <= limit
    assert found.startswith("Step 1: look[1.0]")
    assert f"Step {steps + 1}: answer[0]\nSeen: the episode ended" in found
    shown = {int(n) for n in re.findall(r"^Step (\d+):", found, re.MULTILINE)}
    for first, last in re.findall(r"\[steps? (\d+)(?: to (\d+))? left out\]", found):
        shown |= set(range(int(first), int(last or first) + 1))
    assert shown == set(range(1, steps + 2)), "every step is there or said to be left out"


def test_a_short_trajectory_is_whole() -> None:
    found = transcript(attempt(1, 0.0), 10_000)
    steps = ["Step 1: look[1.0]", "Seen: Inside: 3", "Step 2: look[1.1]", "Seen: Inside: 3"]
    assert found.split("\n") == [*steps, "Step 3: answer[0]", "Seen: the episode ended"]
    assert outcome(attempt(1, 0.0)) == "failure (score 0, ended by: answered)"
    assert outcome(attempt(1, 0.5)) == "partial success (score 0.5, ended by: answered)"
