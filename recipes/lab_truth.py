"""What a run in the laboratory has learned, against what is true there: `python recipes/lab_truth.py RUN...`.

A line an iteration. Of the pool's rules about one sign: how many say the right way, how many the other one, how many
of the planted ones are left; rules about anything else are counted apart. Of the policy's decisions at signs on dev,
without experience: the share that takes the right way, by the kind of the sign.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

from lab_data import sign_at

from internalize.config.schema import Config
from internalize.environments.lab import world
from internalize.environments.lab.cues import CUES
from internalize.experience.pool import ExperiencePool, load_pool
from internalize.experience.rules import decisions, matches, parse
from internalize.records import Trajectory
from internalize.runs.store import read_jsonl, read_run

KINDS = ("tool", "when", "where", "season", "read")


def worth(pool: ExperiencePool, conventions: world.Domain) -> Counter[str]:
    """How many rules are right, wrong, about something else, and planted."""
    said = {sign.rule(bit): bit == conventions[sign.word] for sign in world.SIGNS for bit in (True, False)}
    found = Counter(item.source for item in pool.items)
    for item in pool.items:
        known = said.get(parse(item.text, CUES))  # type: ignore[arg-type]
        found["else" if known is None else "right" if known else "wrong"] += 1
    return found


def rightly(episodes: list[Trajectory], conventions: world.Domain) -> dict[str, float]:
    """The share of decisions that take the right way, by kind."""
    made: defaultdict[str, list[bool]] = defaultdict(list)
    for episode in episodes:
        for situation, call in decisions(episode):
            if sign := sign_at(situation):
                rule = sign.rule(conventions[sign.word])
                made[sign.kind].append(call is not None and matches(rule, situation, call))
    return {kind: sum(found) / len(found) for kind, found in made.items()}


def main() -> None:
    for folder in map(Path, sys.argv[1:]):
        config = Config.model_validate(read_run(folder).config)
        conventions = world.domain(int(str(config.env.options.get("domain", 0))))
        print(f"{folder}\n  k  right wrong  else planted   " + "  ".join(f"{kind:>6}" for kind in KINDS))
        for k in range(config.iterations + 1):
            episodes = folder / f"iter-{k}" / f"episodes-{config.evaluate.split}-internalized-{k}.jsonl"
            if episodes.exists():
                file = folder / f"iter-{k}" / "pool.json"
                pool = worth(load_pool(file), conventions) if file.exists() else Counter[str]()
                shares = rightly(read_jsonl(episodes, Trajectory), conventions)
                counts = (pool["right"], pool["wrong"], pool["else"], pool["planted"])
                print(f"{k:>3} {counts[0]:>6}{counts[1]:>6}{counts[2]:>6}{counts[3]:>8}   "
                      + "  ".join(f"{shares.get(kind, float('nan')):6.2f}" for kind in KINDS))  # fmt: skip


if __name__ == "__main__":
    main()
