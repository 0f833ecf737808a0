"""What can be had in each environment without learning anything, and how fast it answers.

    python -m benchmarks.environments                                  every setting below, without a model
    python -m benchmarks.environments --only docs --policy builtin     the packaged starter
    python -m benchmarks.environments --only 'tau2, one fault' --policy adapters/tau2 --families

`nothing` ends every episode before its first step. `random` takes tools and arguments by chance: a listed command in
text games, elsewhere a value that the tool's schema names or a word that was seen. `reference` is the environment's own
solution (`internalize env validate` proves it on every task). `builtin` is the model with its packaged starter,
a folder an adapter for it, sampled at temperature 1. Success is a score of 1.0 with Wilson's interval; `score` is the
mean. Seconds are of the wall and the environment's alone.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from internalize.environments import registry
from internalize.evaluation.stats import wilson
from internalize.interfaces import Environment, Episode
from internalize.records import Task, ToolCall, ToolSpec

COIN = "numLocations=4,numDistractorItems=3,includeDoors=0,limitInventorySize=0"  # that of recipes/textgame.toml
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "docs": ("docs", {}),
    "maths": ("maths", {}),
    "tau2": ("tau2", {}),
    "tau2, two faults": ("tau2", {"subset": "two_faults"}),
    "tau2, one fault": ("tau2", {"subset": "one_fault"}),
    "textworld_express": ("textworld_express", {}),
    "textworld_express, easy": ("textworld_express", {"difficulty": "easy"}),
    "textworld_express, short": ("textworld_express", {"subset": "short"}),
    "coin, four rooms": ("textworld_express", {"games": ["coin"], "settings": {"coin": COIN}}),
    "scienceworld": ("scienceworld", {}),
    "scienceworld, short": ("scienceworld", {"subset": "short"}),
}
_WORD = re.compile(r"[\w#-]+(?:[./:][\w#-]+)*")
Draw = random.Random


class Played(NamedTuple):
    """One episode."""

    family: str
    score: float | None
    steps: int
    seconds: float  # of the environment


def nothing(_: Environment, __: Task, ___: Draw, ____: int) -> Iterator[Callable[[str], ToolCall]]:
    return iter(())


def at_random(env: Environment, _: Task, draw: Draw, most: int) -> Iterator[Callable[[str], ToolCall]]:
    listing = next((tool for tool in env.tools if tool.name == "actions"), None)
    for _number in range(most):
        if listing:
            yield lambda _: ToolCall.from_text(listing.name, "")
            yield lambda seen: ToolCall.from_text("act", _listed(seen, draw))
        else:
            tool = draw.choice(env.tools)
            yield lambda seen, tool=tool: ToolCall.from_text(tool.name, _argument(tool, seen, draw))  # type: ignore[misc]


def reference(env: Environment, task: Task, _: Draw, __: int) -> Iterator[Callable[[str], ToolCall]]:
    return iter([lambda _, action=action: action for action in env.solve(task)])  # type: ignore[misc]


SCRIPTED = {"nothing": nothing, "random": at_random, "reference": reference}


def _listed(seen: str, draw: Draw) -> str:
    last = seen.rpartition("Possible: ")[2].partition(" and ")[0] if "more; name a word" in seen else seen
    return draw.choice(last.rpartition("Possible: ")[2].split(", ")).strip()


def _argument(tool: ToolSpec, seen: str, draw: Draw) -> str:
    words = _WORD.findall(seen) or ["a"]
    if tool.parameters is None:
        return draw.choice(words)
    known: Any = tool.parameters.get("properties", {})
    return json.dumps({name: _value(own, words, draw) for name, own in known.items()})


def _value(own: dict[str, Any], words: Sequence[str], draw: Draw) -> Any:
    if "enum" in own:
        return draw.choice(own["enum"])
    if own.get("type") in {"number", "integer"}:
        return draw.randint(1, 5)
    return draw.random() < 0.5 if own.get("type") == "boolean" else draw.choice(words)


def play(env: Environment, task: Task, policy: str, draw: Draw, most: int) -> Played:
    """One episode; a listing of commands costs no step."""
    actions = SCRIPTED[policy](env, task, draw, most)
    started = time.perf_counter()
    episode = env.episode(task)
    seen, steps = [message.content for message in episode.prompt()], 0
    for make in actions:
        action = make("\n".join(seen))
        said = episode.step(action)
        steps += action.name != "actions"
        if said is None:
            break
        seen.append(said)
    score = _score(episode)
    getattr(episode, "close", lambda: None)()
    return Played(task.family, score, steps, time.perf_counter() - started)


def _score(episode: Episode) -> float | None:
    """What a judge would have to grade counts as right only if it is the reference itself."""
    score = episode.score()
    claim = getattr(episode, "claim", lambda: None)() if score is None else None
    return score if claim is None else float(claim.answer.strip() == claim.reference.strip())


def sampled(name: str, tasks: Sequence[Task], env: Environment, model: str, most: int, seed: int) -> list[Played]:
    """Episodes of the built-in model."""
    from internalize.config.compute import ComputeConfig  # noqa: PLC0415
    from internalize.config.schema import Config, EnvConfig, ModelConfig, RolloutConfig  # noqa: PLC0415
    from internalize.experience.inject import Injector  # noqa: PLC0415
    from internalize.rollout.episode import Label  # noqa: PLC0415
    from internalize.rollout.record import rollout  # noqa: PLC0415
    from internalize.training.policy import LocalPolicy  # noqa: PLC0415 - seconds to import

    own = ModelConfig(adapter="" if model == "builtin" else model, max_context=2560)  # as recipes/tau2.toml
    limits = RolloutConfig(max_steps=most, max_action_tokens=48)
    policy = LocalPolicy.load(
        Config(seed=seed, model=own, env=EnvConfig(name=env.name), rollout=limits, compute=ComputeConfig(batch=8))
    )
    label = Label(name, 0, seed, policy.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "episodes.jsonl")
        found = asyncio.run(rollout(tasks, env, policy.actor, Injector(), label, path=path))
    return [Played(t.family, t.score, len(t.steps), 0.0) for t in found]


def show(setting: str, split: str, policy: str, played: Sequence[Played]) -> None:
    scored = [p.score for p in played if p.score is not None]
    share = wilson(sum(score == 1.0 for score in scored), len(scored))
    won = f"{100 * share.mean:5.1f} [{100 * share.low:4.1f}, {100 * share.high:5.1f}]" if share else "unscored"
    seconds, steps = sum(p.seconds for p in played), sum(p.steps for p in played)
    speed = f"{steps / seconds:10,.1f}" if seconds and steps else f"{'':10}"
    mean = f"{sum(scored) / len(scored):6.3f}" if scored else " " * 6
    print(f"{setting:26} {split:6} {policy:12} {len(scored):5d}  {won:22} {mean} "
          f"{steps / len(played):7.1f} {speed}", flush=True)  # fmt: skip


def rows(setting: str, split: str, policy: str, played: Sequence[Played], *, families: bool) -> None:
    show(setting, split, policy, played)
    groups: defaultdict[str, list[Played]] = defaultdict(list)
    for one in played:
        groups[one.family].append(one)
    for family in sorted(groups) if families and len(groups) > 1 else []:
        show(f"  {family}", split, policy, groups[family])


@click.command(help=__doc__)
@click.option("--only", multiple=True, help="Settings to play (default: all).", type=click.Choice(list(SETTINGS)))
@click.option("--split", "splits", multiple=True, default=("train", "dev", "test"), show_default=True)
@click.option("--policy", "policies", multiple=True, default=tuple(SCRIPTED), show_default=True)
@click.option("--tasks", default=100, show_default=True, help="First tasks of each split.")
@click.option("--steps", default=20, show_default=True, help="Most steps of an episode, but for references.")
@click.option("--families", is_flag=True, help="A row a family too.")
@click.option("--seed", default=0, show_default=True)
def main(
    only: Sequence[str], splits: Sequence[str], policies: Sequence[str], tasks: int, steps: int, seed: int, *,
    families: bool,
) -> None:  # fmt: skip
    print(f"{'setting':26} {'split':6} {'policy':12} {'n':>5}  {'success, %':22} {'score':>6} {'steps':>7} "
          f"{'steps a second':>14}")  # fmt: skip
    for setting in only or SETTINGS:
        name, options = SETTINGS[setting]
        env = registry.make(name, options)
        for split in splits:
            own = env.tasks(split)[:tasks]
            for policy in policies:
                draw = random.Random(seed)
                if policy in SCRIPTED:
                    played = [play(env, task, policy, draw, steps) for task in own]
                else:
                    played = sampled(setting, own, env, policy, steps, seed)
                rows(setting, split, Path(policy).name, played, families=families)
        getattr(env, "close", lambda: None)()


if __name__ == "__main__":
    main()
