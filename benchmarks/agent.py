"""One iteration of the loop over an example agent with the built-in model: `python -m benchmarks.agent --out FOLDER`.

It takes some minutes on two idle cores and prints success before and after with a paired interval. The same over a tiny
policy, where the rise is large enough to be asserted, is a test (tests/end_to_end/test_agent_env.py).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from internalize import loop
from internalize.config.schema import load_config
from internalize.environments.docs.env import Docs
from internalize.report.headline import summary
from internalize.report.run_report import load

AGENT = Path(__file__).parents[1] / "examples" / "agents" / "openai_loop.py"
SETTINGS = [
    "iterations=1", "env.name=agent", "rollout.tasks=40", "rollout.attempts=1", "rollout.max_steps=8",
    "extract.min_support=3", "distill.tasks=28", "distill.lr=2e-4", "distill.batch=4", "distill.held_out=0.0",
    "evaluate.tasks=24", "evaluate.drift=0", "evaluate.final_splits=[]",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "questions.jsonl"
    rows = [
        {"question": task.question, "answer": task.answer, "split": split, "family": task.family}
        for split in ("train", "dev")
        for task in Docs().tasks(split)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = (
        f'{{tasks="{file}", call="{AGENT}:play", at_once=48, evidence=["visit"], final=["answer"], on_error="wrong"}}'
    )
    config = load_config(None, [*SETTINGS, f"seed={args.seed}", f"env.options={options}"])
    loop.run(config, args.out / "run", resume=True)
    print(summary(load(args.out / "run")))


if __name__ == "__main__":
    main()
