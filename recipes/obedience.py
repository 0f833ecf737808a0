"""How often a policy does what a shown rule says: `python recipes/obedience.py EPISODES.jsonl...`, a line a rule.

For each rule of correct_pool.json: the share of decisions where it applies at which the action it asks for was taken,
where it was shown and where it was not. The starter never saw a hint about "More:" in training.
"""

import sys
from collections import defaultdict
from pathlib import Path

from internalize.environments.docs.cues import CUES
from internalize.experience.pool import load_pool
from internalize.experience.rules import applies, decisions, matches, parse
from internalize.records import Trajectory
from internalize.runs.store import read_jsonl


def main() -> None:
    pool = load_pool(Path(__file__).with_name("correct_pool.json"))
    rules = {item.id: (item.text, parse(item.text, CUES)) for item in pool.items}
    counts: defaultdict[tuple[str, bool], list[bool]] = defaultdict(list)
    for trajectory in (t for name in sys.argv[1:] for t in read_jsonl(Path(name), Trajectory)):
        # the actions of these recipes are one call a turn, so decisions and steps run in parallel
        for (situation, call), step in zip(decisions(trajectory), trajectory.steps, strict=True):
            for item, (text, rule) in rules.items():
                if rule and applies(rule, situation):
                    shown = step.injection is not None and item in step.injection.item_ids
                    counts[text, shown].append(call is not None and matches(rule, situation, call))
    for text, _ in rules.values():
        cells = [f"{sum(c)}/{len(c)}" for shown in (False, True) if (c := counts[text, shown]) is not None]
        print(f"not shown {cells[0]:>9}   shown {cells[1]:>9}   {text}")


if __name__ == "__main__":
    main()
