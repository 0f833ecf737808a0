"""Teaches the built-in model to act in a published environment at all: `python recipes/warm_up.py tau2 --out adapters/tau2`.

`tau2`: tickets of at most two faults. `coin`: the game of TextWorldExpress, four rooms. Only train tasks are used.
The adapter is for SmolLM2-135M-Instruct alone: `model.adapter = "adapters/tau2"`. It replaces the packaged starter.
Data: warm_up_data.py. `--walks 4` tries it out.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

from scripted import call_ids, past
from starter import save
from warm_up_data import HABITS, WALKS, Branch, Hints, Walk, branches

from internalize.config.distill import DistillConfig
from internalize.inference.loading import load_policy
from internalize.inference.renderer import TemplateRenderer, with_system
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import ToolSpec
from internalize.records.packed import Packed
from internalize.training.adapter import new_adapter
from internalize.training.distill import fit
from internalize.training.scoring import pack_branches
from internalize.training.teachers import TrainItem

COUNT = {"tau2": 42, "coin": 54}


def packed(walk: Walk, hung: list[Branch], renderer: TemplateRenderer, tools: tuple[ToolSpec, ...]) -> Packed:
    """The walk as trunk and what hangs on it; only branches carry loss."""
    prompt = with_system(walk.prompt, renderer.instructions(tools))
    turns = [past(renderer, action, tools, seen or "") for action, seen in walk.turns]
    trunk: tuple[int, ...] = ()
    ready = []
    for number, turn in enumerate(turns):
        trunk = renderer.context(prompt, turns[:number]).ids
        for branch in (b for b in hung if b.turn == number):
            context = renderer.context(prompt, turns[:number], branch.hint)
            ids = call_ids(renderer, branch.action, tools)
            ready.append((context.fork, context.ids[context.fork :], ids))
        trunk += turn.token_ids
    return pack_branches(trunk, ready)


def items(name: str, count: int, seed: int, longest: int, renderer: TemplateRenderer) -> list[TrainItem]:
    """`count` walks over the train tasks, each pass in another order and with other branches."""
    rng = random.Random(seed)
    tools, walked = WALKS[name]()
    walks = list(walked)
    hints = Hints(walks, rng)
    found: list[TrainItem] = []
    while len(found) < count:
        rng.shuffle(walks)
        for walk in walks[: count - len(found)]:
            tree = packed(walk, branches(walk, hints, rng, HABITS[name]), renderer, tools)
            if tree.segments[0].end > longest:
                print(f"a walk of {tree.segments[0].end} tokens is left out", flush=True)
                walks = [other for other in walks if other is not walk]
                continue
            found.append(TrainItem(tree))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(WALKS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--walks", type=int, default=0, help="0: 42 for tau2, 54 for coin")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=int, default=1100, help="tokens of a walk")
    args = parser.parse_args()
    model, tokenizer = load_policy("builtin", "none", "cpu", "float32")
    renderer = TemplateRenderer(tokenizer, TOOL_FORMATS["bracket"])
    count = args.walks or COUNT[args.name]
    trees = items(args.name, count, args.seed, args.longest, renderer)
    print(f"{len(trees)} walks, {sum(len(i.packed.ids) for i in trees)} tokens, "
          f"{sum(len(i.packed.targets) for i in trees)} action tokens", flush=True)  # fmt: skip
    policy = new_adapter(model, args.rank, args.seed)
    config = DistillConfig(divergence="sft", epochs=1, lr=args.lr, batch=args.batch, lora_r=args.rank)
    started = time.monotonic()

    def show(step: int, steps: int, loss: float) -> None:
        if step % 5 == 0 or step == steps:
            print(f"step {step}/{steps} loss {loss:.3f} {time.monotonic() - started:.0f} s", flush=True)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    fit(policy, trees, config, seed=args.seed, output_dir=args.out.parent / "trainer", progress=show)
    save(policy, args.out)
    print(f"use it with model.adapter = {str(args.out)!r}")


if __name__ == "__main__":
    main()
