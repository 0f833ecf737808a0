"""Makes the packaged starter policy: `python recipes/starter.py --out internalize/inference/starter`.

SmolLM2-135M-Instruct and a LoRA adapter trained on decision trees (starter_data.py) from the train split of the
`docs` environment only. Cost: about 35 minutes on two cores for the default number of trees.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from peft import PeftModel
from scripted import call_ids, past
from starter_data import Simulator, Tree

from internalize.config.distill import DistillConfig
from internalize.environments.docs.env import SYSTEM, Docs
from internalize.inference.loading import load_policy
from internalize.inference.renderer import TemplateRenderer, with_system
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Message, Task
from internalize.records.packed import Packed
from internalize.training.adapter import new_adapter
from internalize.training.distill import fit
from internalize.training.scoring import pack_branches
from internalize.training.teachers import TrainItem


def packed_tree(tree: Tree, renderer: TemplateRenderer) -> Packed:
    """Trunk and branches as token ids; every branch carries loss on its action, the trunk none."""
    system = f"{SYSTEM}\n{renderer.instructions(Docs.tools)}"
    prompt: tuple[Message, ...] = (Message(role="system", content=system), Message(role="user", content=tree.question))
    if tree.system_hint:
        prompt = with_system(prompt, tree.system_hint)
    turns = [past(renderer, a, Docs.tools, o or "") for a, o in tree.turns]
    trunk: tuple[int, ...] = ()
    branches = []
    for number, turn in enumerate(turns):
        trunk = renderer.context(prompt, turns[:number]).ids
        for at, hint, action, _ in tree.branches:
            if at == number:
                context = renderer.context(prompt, turns[:number], hint)
                ids = call_ids(renderer, action, Docs.tools)
                branches.append((context.fork, context.ids[context.fork :], ids))
        trunk += turn.token_ids
    return pack_branches(trunk, branches)


def trees(count: int, seed: int, *, plain: bool = False) -> list[Tree]:
    """`count` trees over the train tasks, each pass in another order."""
    env, rng = Docs(), random.Random(seed)
    simulator, order = Simulator(env, seed, plain=plain), list[Task]()
    while len(order) < count:
        tasks = list(env.tasks("train"))
        rng.shuffle(tasks)
        order += tasks
    return [simulator.tree(task) for task in order[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trees", type=int, default=450)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="the format only: no habits, no rules (--trees 240)")
    args = parser.parse_args()
    model, tokenizer = load_policy("builtin", "none", "cpu", "float32")
    renderer = TemplateRenderer(tokenizer, TOOL_FORMATS["bracket"])
    items = [TrainItem(packed_tree(tree, renderer)) for tree in trees(args.trees, args.seed, plain=args.plain)]
    print(f"{len(items)} trees, {sum(len(i.packed.ids) for i in items)} tokens, "
          f"{sum(len(i.packed.targets) for i in items)} action tokens", flush=True)  # fmt: skip
    policy = new_adapter(model, args.rank, args.seed)
    config = DistillConfig(divergence="sft", epochs=1, lr=args.lr, batch=args.batch, lora_r=args.rank)
    started = time.monotonic()

    def show(step: int, steps: int, loss: float) -> None:
        if step % 5 == 0:
            print(f"step {step}/{steps} loss {loss:.3f} {time.monotonic() - started:.0f} s", flush=True)
        if step % 25 == 0:
            save(policy, args.out.with_name(args.out.name + "-partial"))

    fit(policy, items, config, seed=args.seed, output_dir=args.out.parent / "trainer", progress=show)
    save(policy, args.out)


def save(policy: PeftModel, folder: Path) -> None:
    """The adapter in half precision, which keeps it below 10 MB."""
    policy.peft_config["default"].base_model_name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    state = {n: p.detach().to(torch.float16) for n, p in policy.state_dict().items() if "lora_" in n}
    policy.save_pretrained(folder, state_dict=state, save_embedding_layers=False)


if __name__ == "__main__":
    main()
