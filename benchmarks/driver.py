"""What one process takes for an episode besides sampling, and how many workers it can serve.

    python -m benchmarks.driver --episodes 10000

All episodes are in flight at once, four turns each, over an engine that answers at once. `plays`: rendering, parsing,
the environment and the records, as the process does that plays. `receives`: what is left for the one that workers of
Ray send their episodes to; with writing, which waits for the disk. The curve says how many episodes a second so many
workers give that make `--rates` a second each, and where this process is the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import pickle
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

from internalize.config.schema import RolloutConfig
from internalize.experience.inject import Injector
from internalize.inference.agent import TokenAgent
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Generation, Message, Sampling, Task, ToolCall, ToolSpec, Trajectory
from internalize.rollout.episode import Label, episode_id
from internalize.rollout.local import jobs_of, play
from internalize.rollout.record import record
from tests.tiny import tiny_tokenizer

TURNS = 4
OBSERVATION = "When the page only names an alias, visit the page that defines it. " * 3


class AtOnce:
    """An engine that gives one action, after every other conversation had its turn."""

    def __init__(self, renderer: TemplateRenderer) -> None:
        self.renderer = renderer
        self.turn = renderer.encode_text("search[json decoder]")
        self.at_once = self.most = 0

    async def generate(
        self, prompt_ids: Sequence[int], *, conversation: str, seed: int, sampling: Sampling | None = None
    ) -> Generation:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        logprobs = (-0.5,) * len(self.turn)
        return Generation(token_ids=self.turn, logprobs=logprobs, text="search[json decoder]", finish="stop")

    def release(self, conversation: str) -> None: ...

    def reset(self) -> None: ...


class Steps:
    name = "steps"
    tools = (ToolSpec(name="search", argument="words", description="Search."),)
    evidence_actions = final_actions = frozenset({"search"})

    def tasks(self, split: str) -> tuple[Task, ...]:
        return ()

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        return ()

    def episode(self, task: Task) -> Episode:
        return Episode(task)


class Episode:
    def __init__(self, task: Task) -> None:
        self.task, self.turns = task, 0

    def prompt(self) -> tuple[Message, ...]:
        return (Message(role="system", content=OBSERVATION), Message(role="user", content=self.task.question))

    def step(self, call: ToolCall | None) -> str | None:
        self.turns += 1
        return None if self.turns == TURNS else OBSERVATION

    def score(self) -> float | None:
        return 1.0


class Timed:
    """Processor and wall milliseconds an episode."""

    def __init__(self, name: str, episodes: int) -> None:
        self.name, self.episodes = name, episodes

    def __enter__(self) -> Timed:
        self.began = time.process_time(), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu = (time.process_time() - self.began[0]) * 1000 / self.episodes
        self.wall = (time.monotonic() - self.began[1]) * 1000 / self.episodes
        print(f"{self.name:34} {self.cpu:8.2f} ms of a processor  {self.wall:8.2f} ms of time an episode")


async def all_of(episodes: AsyncIterator[Trajectory]) -> list[Trajectory]:
    return [t async for t in episodes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=10_000)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.4, 5.0, 20.0], help="episodes/s of one worker")
    given = parser.parse_args()
    renderer = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
    engine = AtOnce(renderer)
    limits = RolloutConfig(max_steps=TURNS + 1)
    agent = TokenAgent(engine, renderer, limits, 4096, given.episodes)
    tasks = [Task.new("steps", "train", f"What is in box {n}?") for n in range(given.episodes)]
    label = Label("rollout", 0, 0, "c")
    with Timed("plays", given.episodes):
        found = asyncio.run(all_of(play(tasks, Steps(), agent, Injector(), label)))
    print(f"{engine.most} in flight at once, {len(found)} episodes")
    sent = [pickle.dumps(t) for t in found]
    with Timed("receives", given.episodes) as receives:
        for data in sent:
            pickle.loads(data)  # noqa: S301 - our own
    ids = [episode_id(*job, label) for job in jobs_of(tasks, 1)]

    async def come_home(_: Collection[str]) -> AsyncIterator[Trajectory]:
        for data in sent:
            yield pickle.loads(data)  # noqa: S301
            await asyncio.sleep(0)

    with tempfile.TemporaryDirectory() as folder, Timed("receives and writes", given.episodes) as writes:
        asyncio.run(record(come_home, ids, Path(folder, "episodes.jsonl")))
    limit = 1000 / max(writes.wall, receives.wall)
    print(f"this process takes in {limit:.0f} episodes/s\n{'workers':>8}" + "".join(f"{r:>10}/s" for r in given.rates))
    for workers in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        print(f"{workers:8}" + "".join(f"{min(workers * rate, limit):>12.1f}" for rate in given.rates))


if __name__ == "__main__":
    main()
