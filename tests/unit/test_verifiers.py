"""Environments of the library verifiers, as published, played over HTTP to their own rewards."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verifiers", reason="needs the extra 'verifiers'")
pytest.importorskip("starlette", reason="needs the extra 'serve'")

from internalize.environments import registry
from internalize.environments.adapters.verifiers import Verifiers
from internalize.environments.validate import validate
from internalize.errors import TaskError
from tests.policies import RENDERER, played

pytestmark = [pytest.mark.slow, pytest.mark.server]  # the library takes seconds to load
PUZZLES = """
from verifiers.envs.integrations.reasoninggym_env import ReasoningGymEnv

def load_environment(gym="leg_counting", train=30, held=12):
    return ReasoningGymEnv(gym=gym, num_train_examples=train, num_eval_examples=held)
"""
LAKE = """
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from verifiers.envs.experimental.gym_env import GymEnv

def load_environment():
    return GymEnv(FrozenLakeEnv, {"is_slippery": False}, int, lambda place: f"Place {place}.", num_train_episodes=3,
                  num_eval_episodes=2, max_episode_steps=20)
"""
OWN = """
import verifiers as vf
from datasets import Dataset

def right(completion, answer, **kwargs):
    return float(completion[-1]["content"] == answer)

def broken(completion):
    raise KeyError("no such field")

async def add(a: int, b: int) -> int:
    '''The sum.'''
    return a + b

def whole(completions):
    return [0.0] * len(completions)

ROWS = Dataset.from_list([{"question": f"{n} and 2?", "answer": str(n + 2)} for n in range(20)])

def load_environment(kind="tools"):
    if kind == "tools":
        return vf.ToolEnv(tools=[add], dataset=ROWS, max_turns=3, rubric=vf.Rubric([right], [1.5]))
    if kind == "text":
        return vf.SingleTurnEnv(dataset=Dataset.from_list([{"prompt": "One and two?"}]), rubric=vf.Rubric([right]))
    if kind == "completion":
        return vf.SingleTurnEnv(dataset=Dataset.from_list([{"prompt": "One and"}]), message_type="completion")
    functions = {"broken": [right, broken], "group": [whole]}[kind]
    return vf.SingleTurnEnv(dataset=ROWS, rubric=vf.Rubric(functions))
"""


def made(name: str, **options: Any) -> Verifiers:
    env = registry.make(f"verifiers:{name}", options)
    assert isinstance(env, Verifiers)
    return env


def written(folder: Path, text: str) -> str:
    file = folder / "own_environment.py"
    file.write_text(text)
    return str(file)


def test_a_published_puzzle_is_scored_as_its_library_does(tmp_path: Path) -> None:
    """Every second one is answered with what the package's own data set says."""
    import reasoning_gym  # noqa: PLC0415

    env = made(written(tmp_path, PUZZLES), seconds=60)
    assert len(env.tasks("train")) == 30
    assert len(env.tasks("dev")) + len(env.tasks("test")) == 12
    answers = {row["question"]: row["answer"] for row in reasoning_gym.create_dataset("leg_counting", size=42, seed=0)}
    tasks = list(env.tasks("train"))[:6]
    known = {task.question: answers[task.question] for task in tasks[::2]}

    def reply(text: str) -> str:
        found = next((answer for question, answer in known.items() if question.strip() in text), "-1")
        return f"I count. <answer>{found}</answer>"

    episodes = played(env, tasks, reply)
    assert [episode.failure for episode in episodes] == [None] * 6
    assert [episode.score == 1.0 for episode in episodes] == [True, False] * 3
    for task, episode in zip(tasks, episodes, strict=True):
        assert (episode.env, episode.split, len(episode.steps)) == (env.name, "train", 1)
        assert episode.prompt[-1].text == task.question
        assert episode.steps[0].token_ids == RENDERER.encode_text(episode.steps[0].text)


def test_another_published_environment_is_played_turn_by_turn(tmp_path: Path) -> None:
    """The frozen lake of gymnasium, whose ice does not slip: right, right, down, down, down, right."""
    pytest.importorskip("gymnasium", reason="needs the extra 'gymnasium'")
    env = made(written(tmp_path, LAKE), seconds=60)
    assert len(env.tasks("train")) == 3
    task = env.tasks("train")[0]
    path, wrong = ["2", "2", "1", "1", "1", "2", "2"], ["2", "1", "2"]
    turns = [RENDERER.encode_text(move) for move in path]

    def along(moves: list[str]) -> Callable[[str], str]:
        return lambda text: moves[min(text.count("<|im_start|>assistant") - 1, len(moves) - 1)]

    (won,) = played(env, [task], along(path))
    assert won.failure is None
    assert won.score == 1.0
    assert [step.token_ids for step in won.steps][:6] == turns[:6]
    (lost,) = played(env, [task], along(wrong))
    assert (lost.failure, lost.score) == (None, 0.0)
    (cut,) = played(env, [task], along(["0"]), max_steps=4)
    assert (cut.termination, cut.score, len(cut.steps)) == ("max_steps", 0.0, 4)


def test_a_prompt_that_is_no_conversation_is_refused(tmp_path: Path) -> None:
    """As in the package staros-stardata 0.1, whose prompts are texts."""
    with pytest.raises(TaskError, match="the prompt of row 0 is no list of messages"):
        made(written(tmp_path, OWN), env={"kind": "text"})


def test_the_tools_of_an_environment_run_where_it_says(tmp_path: Path) -> None:
    env = made(written(tmp_path, OWN), best=1.5)
    assert env.evidence_actions == {"add"}

    def reply(text: str) -> str:
        question = re.findall(r"(\d+) and 2\?", text)[-1]
        if "<|im_start|>assistant" in text.partition("and 2?")[2].replace("<|im_start|>assistant", "", 1):
            return str(int(question) + 2)
        return f"add[{json.dumps({'a': int(question), 'b': 2})}]"

    task = env.tasks("train")[0]
    (episode,) = played(env, [task], reply)
    assert episode.failure is None
    assert [[call.name for call in step.calls] for step in episode.steps] == [["add"], []]
    assert episode.steps[0].results[0].text == episode.steps[1].text
    assert episode.score == 1.0
    (episode,) = played(env, [task], lambda _: "7000")
    assert episode.score == 0.0


def test_a_reward_that_fails_is_no_score_and_one_beyond_the_best_neither(tmp_path: Path) -> None:
    file = written(tmp_path, OWN)
    broken = made(file, env={"kind": "broken"})
    (episode,) = played(broken, [broken.tasks("train")[0]], lambda _: "1")
    assert episode.score is None
    assert "the reward broken raised KeyError: 'no such field'" in str(episode.failure)
    named = made(file, env={"kind": "broken"}, reward="right")
    task = named.tasks("train")[0]
    answer = str(int(task.question.split()[0]) + 2)
    (episode,) = played(named, [task], lambda _: answer)
    assert "the reward broken raised" in str(episode.failure)
    above = made(file)
    (episode,) = played(above, [task for task in above.tasks("train") if task.question == "3 and 2?"], lambda _: "5")
    assert "the reward 1.5 is above env.options.best = 1" in str(episode.failure)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"env": {"kind": "completion"}}, "texts to be completed, which cannot be carried over"),
        ({"env": {"kind": "group"}}, "its reward whole compares whole groups"),
        ({"env": {"kind": "else"}}, "cannot be loaded"),
        ({"reward": "wrong"}, "env.options.reward = 'wrong' is none of its reward functions"),
        ({"best": 0}, "best"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=problem):
        made(written(tmp_path, OWN), **options)


def test_an_unknown_name_is_refused_and_validation_says_who_plays() -> None:
    with pytest.raises(TaskError, match="verifiers:nothing_here: cannot be loaded"):
        made("nothing_here")


def test_equal_rows_are_one_task_in_one_split(tmp_path: Path) -> None:
    """With the same seed and one set, training rows and held out ones never meet."""
    env = made(written(tmp_path, OWN))
    tasks = [task for split in env.splits() for task in env.tasks(split)]
    assert len({task.question for task in tasks}) == len(tasks) == 20
    with pytest.raises(TaskError, match="an agent plays its tasks"):
        list(validate(env, env.splits()))


def test_the_signals_of_the_run_are_left_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as threads:  # as in a notebook
        assert threads.submit(made, written(tmp_path, OWN)).result().tasks("train")
    made(written(tmp_path, OWN))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
