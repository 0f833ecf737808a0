"""Writes correct_pool.json: rules that are right in the `docs` environment, by hand, to measure what a pool can do."""

from pathlib import Path

from internalize.experience.pool import ExperiencePool, save_pool
from internalize.records import Experience

RULES = (
    "At the start, search the first name in the question.",
    'When you see "Found:", visit the name after "1.".',
    'When you see "Alias of", visit the name after "Alias of".',
    'When you see "More:" and the asked word is missing, visit the name after "More:".',
    'When you see "Bases:" and the asked word is missing, visit the name after "Bases:".',
    'When the question says "and also" and the asked word is there, search the last name in the question.',
)

if __name__ == "__main__":
    items = tuple(Experience.new(rule, "principle", "by hand") for rule in RULES)
    save_pool(ExperiencePool(items, 50), Path(__file__).with_suffix(".json"))
