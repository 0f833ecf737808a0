"""One iteration of the loop over an example agent with the built-in model: `python -m benchmarks.agent --out FOLDER`.

It takes about twenty minutes on two idle cores and prints success before and after with a paired interval. With
`--without-pool` the policy is not measured with the pool in its prompt as well, which is half of the episodes. The same
over a tiny policy, where the rise is large enough to be asserted, is a test (tests/end_to_end/test_agent_env.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from internalize import loop
from internalize.config.schema import load_config
from internalize.environments.docs.env import Docs
from internalize.experience.pool import ExperiencePool
from internalize.records import Checkpoint, Mode
from internalize.report.headline import summary
from internalize.report.run_report import load
from internalize.stages.run import Run

AGENT = Path(__file__).parents[1] / "examples" / "agents" / "openai_loop.py"
SETTINGS = [
    "env.name=agent", "rollout.attempts=1", "rollout.max_steps=8", "extract.min_support=3",
    "distill.lr=2e-4", "distill.batch=4", "distill.held_out=0.0",
    "evaluate.drift=0", "evaluate.final_splits=[]",
]  # fmt: skip


class WithoutPool(Run):
    """A run whose policy is measured without the pool alone."""

    async def evaluate(
        self, policy: Checkpoint, suites: Sequence[str], modes: Sequence[Mode], pool: ExperiencePool, k: int
    ) -> None:
        if "internalized" in modes:
            await super().evaluate(policy, suites, ("internalized",), pool, k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--learn", type=int, default=160)
    parser.add_argument("--dev", type=int, default=140)
    parser.add_argument("--divergence", default="forward", choices=("forward", "sft"))
    parser.add_argument("--without-pool", action="store_true")
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
    sizes = [f"rollout.tasks={args.rollouts}", f"distill.tasks={args.learn}", f"evaluate.tasks={args.dev}"]
    sizes += [f"iterations={args.iterations}", f"seed={args.seed}", f"distill.divergence={args.divergence}"]
    config = load_config(None, [*SETTINGS, *sizes, f"env.options={options}"])
    if args.without_pool:
        loop.Run = WithoutPool  # type: ignore[misc]
    loop.run(config, args.out / "run", resume=True)
    print(summary(load(args.out / "run")))


if __name__ == "__main__":
    main()
