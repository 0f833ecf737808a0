"""Makes the laboratory's policy from nothing: `python recipes/lab_policy.py --out internalize/inference/lab`.

A Llama of about a million weights with a vocabulary of whole words. `--habit 0` plants no habit; `--obey 0` shows no
hint, so that the policy is taught the format only. Data: lab_data.py. Cost: see docs/laboratory.md.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from pathlib import Path

import torch
from lab_data import Tree, Trees, repeats, texts
from scripted import call_ids, past
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from internalize.config.distill import DistillConfig
from internalize.environments.lab.env import SYSTEM, Lab
from internalize.inference.renderer import TemplateRenderer, with_system
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Message
from internalize.records.packed import Packed
from internalize.training.distill import fit
from internalize.training.scoring import join, pack_branches
from internalize.training.teachers import TrainItem

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
SPECIAL = ["<unknown>", "<end>", "<system>", "<user>", "<assistant>", "<tool>"]
WORDS = (
    r"[A-Za-z]+[\[:.]?|\n|[^\sA-Za-z]"  # a label with its colon, a verb with its bracket: one word, as is a line break
)


def tokenizer_of(corpus: list[str]) -> PreTrainedTokenizerFast:
    """One token a word, the frequent ones first; spaces are dropped. A word that is not there is an ordinary token."""
    split = pre_tokenizers.Split(Regex(WORDS), "removed", invert=True)
    counts = Counter(word for text in corpus for word, _ in split.pre_tokenize_str(text))
    ordered = [*SPECIAL, *sorted(counts, key=lambda word: (-counts[word], word))]
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(ordered)}, unk_token=SPECIAL[0]))
    words.pre_tokenizer = split
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[1],
        additional_special_tokens=SPECIAL[2:],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def new_model(size: int, width: int, layers: int, eos: int, seed: int) -> LlamaForCausalLM:
    """Random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=eos,
        bos_token_id=None,
        pad_token_id=eos,
    )
    return LlamaForCausalLM(config).eval()


def packed(tree: Tree, renderer: TemplateRenderer) -> Packed:
    """Trunk and branches as token ids; every branch has loss on its action, the trunk none."""
    system = f"{SYSTEM}\n{renderer.instructions(Lab.tools)}"
    prompt: tuple[Message, ...] = (
        Message(role="system", content=system),
        Message(role="user", content=tree.task.question),
    )
    if tree.system_hint:
        prompt = with_system(prompt, tree.system_hint)
    turns = [past(renderer, call, Lab.tools, seen) for call, seen in tree.turns]
    trunk: tuple[int, ...] = ()
    ready = []
    for number, turn in enumerate(turns):
        trunk = renderer.context(prompt, turns[:number]).ids
        for branch in (b for b in tree.branches if b.turn == number):
            context = renderer.context(prompt, turns[:number], branch.hint)
            ids = call_ids(renderer, branch.action, Lab.tools)
            ready.append((context.fork, context.ids[context.fork :], ids))
        trunk += turn.token_ids
    return pack_branches(trunk, ready)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--habit", type=float, default=0.3, help="rate of the habits at a sign")
    parser.add_argument("--obey", type=float, default=1.0, help="share of the trees that have hints")
    parser.add_argument(
        "--copying", type=int, default=560, help="optimizer steps on words that repeat, before the trees"
    )
    parser.add_argument("--trees", type=int, default=8000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=2, help="rows of four trees in an optimizer step")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    source = Trees(args.habit, args.obey, args.seed)
    trees = [source.tree() for _ in range(args.trees)]
    renderer_format = TOOL_FORMATS["bracket"]
    said = Trees(args.habit, 1.0, args.seed)  # every word of the language, whatever this policy is shown
    corpus = [
        *texts([said.tree() for _ in range(2000)]),
        f"{SYSTEM}\n{renderer_format.instructions(Lab.tools)}",
        " ".join(f"{tool.name}[" for tool in Lab.tools),
    ]
    tokenizer = tokenizer_of(corpus)
    renderer = TemplateRenderer(tokenizer, renderer_format)
    packs = [packed(tree, renderer) for tree in trees]
    items = [TrainItem(join(packs[n : n + 4])) for n in range(0, len(packs), 4)]
    model = new_model(len(tokenizer), args.width, args.layers, tokenizer.eos_token_id, args.seed)
    print(f"{model.num_parameters():,} weights, {len(tokenizer)} words, {len(trees)} trees, "
          f"{sum(len(i.packed.ids) for i in items):,} tokens, "
          f"{sum(len(i.packed.targets) for i in items):,} action tokens", flush=True)  # fmt: skip
    started = time.monotonic()

    def show(step: int, steps: int, loss: float) -> None:
        if step % 20 == 0 or step == steps:
            print(f"step {step}/{steps} loss {loss:.3f} {time.monotonic() - started:.0f} s", flush=True)
        if step % 100 == 0:
            save(model, tokenizer, args.out.with_name(args.out.name + "-partial"))

    def train(rows: list[TrainItem], batch: int, schedule: str) -> None:
        trainer = {"lr_scheduler_type": schedule, "warmup_steps": 30, "adam_beta2": 0.98}
        config = DistillConfig(divergence="sft", epochs=1, lr=args.lr, batch=batch, lora_r=0, trainer=trainer)
        fit(model, rows, config, seed=args.seed, output_dir=args.out.parent / "trainer", progress=show)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    train(copying(len(tokenizer), args.copying, args.seed), 1, "constant_with_warmup")
    train(items, args.batch, "cosine")
    save(model, tokenizer, args.out)


def copying(words: int, rows: int, seed: int) -> list[TrainItem]:
    """Rows of sequences that repeat themselves."""
    rng = random.Random(seed)
    drawn = [[repeats(range(len(SPECIAL), words), rng) for _ in range(36)] for _ in range(rows)]
    return [
        TrainItem(join([pack_branches(i, [(at, (), run) for at, run in known]) for i, known in row])) for row in drawn
    ]


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """In half precision, and the model in memory as it was."""
    state = {name: weight.detach().to(torch.float16) for name, weight in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
