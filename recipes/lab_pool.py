"""Pools of the laboratory whose worth is known: `python recipes/lab_pool.py` writes them to recipes/studies.

right: the rules of domain 0, in which the recipes play. opposite: the other way at every sign. other_domain: the rules
of domain 3, of which half are right in domain 0.
"""

from __future__ import annotations

from pathlib import Path

from internalize.environments.lab import world
from internalize.experience.pool import ExperiencePool, save_pool
from internalize.experience.rules import phrase
from internalize.records import Experience

OTHER = 3  # a domain that agrees with domain 0 at half of the signs
FOLDER = Path(__file__).parent / "studies"


def pool(domain: int, *, opposite: bool = False) -> ExperiencePool:
    """What every sign of a domain asks for, or does not."""
    bits = {word: bit != opposite for word, bit in world.domain(domain).items()}
    texts = [phrase(sign.rule(bits[sign.word])) for sign in world.SIGNS]
    return ExperiencePool(tuple(Experience.new(text, "principle", "lab_pool.py") for text in texts), len(texts))


if __name__ == "__main__":
    save_pool(pool(0), FOLDER / "lab_right.json")
    save_pool(pool(0, opposite=True), FOLDER / "lab_opposite.json")
    save_pool(pool(OTHER), FOLDER / "lab_other_domain.json")
