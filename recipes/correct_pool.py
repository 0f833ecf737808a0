"""Writes correct_pool.json: rules that are right in the `docs` environment, by hand, to measure what a pool can do."""

from pathlib import Path

from internalize.experience.pool import ExperiencePool, save_pool
from internalize.experience.rules import FIRST_NAME, LAST_NAME, Rule, phrase
from internalize.records import Experience

RULES = (
    Rule("start", "", "", "search", FIRST_NAME),
    Rule("observation", "Found:", "", "visit", "1."),
    Rule("observation", "Alias of", "", "visit", "Alias of"),
    Rule("observation", "More:", "missing", "visit", "More:"),
    Rule("observation", "Bases:", "missing", "visit", "Bases:"),
    Rule("question", "and also", "there", "search", LAST_NAME),
)

if __name__ == "__main__":
    items = tuple(Experience.new(phrase(rule), "principle", "by hand") for rule in RULES)
    save_pool(ExperiencePool(items, 50), Path(__file__).with_suffix(".json"))
