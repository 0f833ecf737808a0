"""Rollouts on real workers of Ray: the records of one process, also when workers are killed."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra 'ray'")
pytest.importorskip("peft", reason="needs the learning half")

import ray

from internalize import loop
from internalize.config.compute import ComputeConfig
from internalize.config.schema import Config, load_config
from internalize.config.specs import RolloutSpec
from internalize.environments import registry
from internalize.errors import Incomplete
from internalize.experience.pool import ExperiencePool, empty
from internalize.inference.cached import CachedReply
from internalize.inference.endpoints import Endpoints
from internalize.records import Experience, PoolEdit, Trajectory
from internalize.rollout.ray import RayRollouts, start
from internalize.runs.store import read_jsonl
from internalize.stages.backends import in_process
from internalize.stages.study_workers import on_ray
from internalize.training.policy import LocalPolicy
from tests.faulty_server import FaultyServer
from tests.fluent import save_fluent
from tests.ray_workers import doomed, study_run, toy_worker
from tests.seams.test_seams import SET, require_equal
from tests.toy import Toy

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        start(ComputeConfig(replicas=2))
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    source = save_fluent(tmp_path_factory.mktemp("model"))
    return load_config(None, [*SET, f"model.source={source}", "compute.replicas=2", "compute.batch=2"])


def spec_of(config: Config, root: Path, **more: object) -> RolloutSpec:
    starter = LocalPolicy.of(config, check=False).starter
    given = {"checkpoint": starter, "env": config.env, "stage": "rollout", "iteration": 0, "attempts": 1}
    return RolloutSpec(config=config, root=root, **given | more)


def play(rollouts: RayRollouts, spec: RolloutSpec, at: Callable[[int], None] = lambda _: None) -> list[Trajectory]:
    async def episodes() -> list[Trajectory]:
        found: list[Trajectory] = []
        async for trajectory in rollouts.run(spec, Toy().tasks("train")):
            found.append(trajectory)
            at(len(found))
        return found

    return asyncio.run(episodes())


def test_a_run_on_two_workers_leaves_the_records_of_one_process(config: Config, tmp_path: Path) -> None:
    for name in ("alone", "ray"):
        policy = LocalPolicy.of(config)
        rollouts = RayRollouts(config, policy.endpoints, toy_worker)
        loop.run(
            config,
            tmp_path / name,
            backends=lambda _, envs, policy=policy, rollouts=rollouts, name=name: dataclasses.replace(
                in_process(policy, envs), **({"rollouts": rollouts} if name == "ray" else {})
            ),
        )
    require_equal(tmp_path / "ray", tmp_path / "alone")


def test_workers_that_are_killed_cost_nothing_that_came_home(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rollouts, spec = RayRollouts(config, Endpoints(config), toy_worker), spec_of(config, tmp_path)
    calm = play(rollouts, spec)

    def kill(number: int) -> None:
        if number in (2, 6):
            pid = ray.get(rollouts.worker(number % 2).__ray_call__.remote(lambda _: os.getpid()))
            os.kill(pid, signal.SIGKILL)

    caplog.set_level(logging.WARNING)
    stormy = play(rollouts, spec, kill)
    assert sorted(t.id for t in stormy) == sorted(t.id for t in calm)
    tokens = {t.id: [s.token_ids for s in t.steps] for t in calm}
    assert {t.id: [s.token_ids for s in t.steps] for t in stormy} == tokens
    assert 1 <= caplog.text.count("a worker was lost") <= 2


def test_workers_that_always_die_leave_the_episodes_owed(config: Config, tmp_path: Path) -> None:
    rollouts = RayRollouts(config, Endpoints(config), doomed)
    with pytest.raises(Incomplete, match=r"2 episodes are owed: 3 workers were lost while they played them"):
        play(rollouts, spec_of(config, tmp_path))


def test_replies_come_home_and_a_budget_holds_over_all_workers(config: Config, tmp_path: Path) -> None:
    items = [Experience.new(f"Look into box {n} first.", "principle", "test") for n in range(3)]
    pool = empty(50).apply([PoolEdit(op="ADD", item=item) for item in items])
    assert isinstance(pool, ExperiencePool)
    answer = json.dumps({"rationale": "It fits.", "ids": [items[0].id]})
    with FaultyServer(lambda m, s: answer) as server:
        chosen = {"inject.selector": "llm", "inject.endpoint": "e", "endpoints.e.model": "m", "inject.k": 1}
        there = [f"{key}={json.dumps(value)}" for key, value in chosen.items()]
        there += [f"endpoints.e.base_url={json.dumps(server.base_url)}", f"model.source={config.model.source}"]
        base = [*SET, *there, "compute.replicas=2", "compute.batch=2"]
        free = load_config(None, base)
        endpoints, replies = Endpoints(free), tmp_path / "selections.jsonl"
        spec = spec_of(free, tmp_path, pool=pool.items, replies=replies)
        episodes = play(RayRollouts(free, endpoints, toy_worker), spec)
        assert len(episodes) == 12
        kept = read_jsonl(replies, CachedReply)
        assert len(kept) >= len({t.id for t in episodes}) > 1
        assert endpoints.usage["e"].answers == server.answered == len(kept)
        tokens = endpoints.usage["e"].tokens
        again = Endpoints(free)
        play(RayRollouts(free, again, toy_worker), spec)
        assert again.usage.get("e") is None or again.usage["e"].answers == 0, "no reply is paid for twice"

        tight = load_config(None, [*base, f"endpoints.e.max_tokens={tokens // 2}"])
        used = Endpoints(tight)
        with pytest.raises(Incomplete, match="budget"):
            play(
                RayRollouts(tight, used, toy_worker), spec_of(tight, tmp_path, pool=pool.items, replies=tmp_path / "x")
            )
        assert tokens // 2 <= used.usage["e"].tokens < tokens


KILLED = [
    "iterations=1", "env.name=maths", "env.options={size=24}", "rollout.tasks=6", "rollout.attempts=2",
    "rollout.max_steps=2", "rollout.max_action_tokens=8", "rollout.require_success=false", "distill.tasks=4",
    "distill.epochs=1", "distill.lora_r=2", "distill.filter=none", "distill.divergence=sft", "evaluate.tasks=3",
    "evaluate.final_splits=[]", "evaluate.drift=0", "evaluate.resamples=100", "compute.batch=2", "compute.replicas=2",
]  # fmt: skip


def test_a_driver_that_is_killed_goes_on_to_the_same_records(tmp_path: Path) -> None:
    settings = [*KILLED, f"model.source={save_fluent(tmp_path / 'model')}"]
    (tmp_path / "recipe.toml").write_text("")

    def command(out: str, rollout: str) -> list[str]:
        given = [argument for one in (*settings, f"compute.rollout={rollout}") for argument in ("--set", one)]
        return [sys.executable, "-m", "internalize.cli", "run", "recipe.toml", "--out", out, "--resume", *given]

    subprocess.run(command("calm", "local"), cwd=tmp_path, check=True, timeout=600, capture_output=True)
    process = subprocess.Popen(command("killed", "ray"), cwd=tmp_path, stderr=subprocess.PIPE)
    played = tmp_path / "killed" / "iter-1" / "rollouts.jsonl"
    for _ in range(6000):
        if process.poll() is not None or (played.exists() and played.read_bytes().count(b"\n") >= 3):
            break
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert 3 <= played.read_bytes().count(b"\n") < 12, "killed in the middle of a stage"
    subprocess.run(command("killed", "ray"), cwd=tmp_path, check=True, timeout=600, capture_output=True)
    require_equal(tmp_path / "killed", tmp_path / "calm")


def test_the_runs_of_a_study_are_played_on_workers(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ray.shutdown()
    with on_ray(study_run, 2) as play_there:
        play_there(config, tmp_path / "there" / "run")
        with pytest.raises(Incomplete, match=r"^the budget is spent$"):
            play_there(config.model_copy(update={"seed": 1}), tmp_path / "there" / "other")
    start(ComputeConfig(replicas=2))
    assert caplog.text.count("its worker was lost") == 1
    loop.run(config, tmp_path / "here")
    require_equal(tmp_path / "there" / "run", tmp_path / "here")
