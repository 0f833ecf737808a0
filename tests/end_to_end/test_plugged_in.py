"""What a recipe plugs into rollouts: a selector behind an endpoint or the policy itself, and a judge."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from internalize.config.schema import Config, load_config
from internalize.environments import registry
from internalize.experience.pool import ExperiencePool, save_pool
from internalize.inference.cached import CachedReply
from internalize.records import Claim, Experience, Task, Trajectory
from internalize.runs.store import read_jsonl
from internalize.stages import standalone as single
from internalize.training.policy import LocalPolicy
from tests.faulty_server import FaultyServer
from tests.tiny import tiny_model, tiny_tokenizer
from tests.toy import Toy, ToyEpisode

TEXTS = ("Look before you answer.", "Boxes hold one number.", "Answer with the number alone.")
ITEMS = tuple(Experience.new(text, "principle", "by hand") for text in TEXTS)
SET = [
    "env.name=toy", "rollout.max_steps=3", "rollout.max_action_tokens=6", "distill.lora_r=2", "compute.batch=3",
    "inject.selector=llm", "inject.k=1", "model.max_context=4000",
]  # fmt: skip


class ClaimingEpisode(ToyEpisode):
    """Cannot tell a right answer: says what is to be compared."""

    def score(self) -> float | None:
        return None

    def claim(self) -> Claim | None:
        if self.answer is None:
            return None
        return Claim(question=self.task.question, reference=self.answer, answer=f"The answer is {self.answer}.")


class ClaimingToy(Toy):
    def episode(self, task: Task) -> ClaimingEpisode:
        return ClaimingEpisode(task, breaks=False)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "make", lambda name, _: {"toy": Toy, "claiming": ClaimingToy}[name]())
    monkeypatch.setattr(single, "_policy", lambda config, _: LocalPolicy(config, tiny_model(), tiny_tokenizer()))


def play(config: Config, out: Path, tasks: int = 4) -> list[Trajectory]:
    pool = out.with_name("pool.json")
    save_pool(ExperiencePool(ITEMS, 10), pool)
    return single.play(config, single.TaskSlice("dev", tasks, 1), out, single.Inputs(pool), lambda *_: None)


def second_item(messages: list[dict[str, object]], _: object) -> str:
    ids = re.findall(r"^\[([0-9a-f]{12})\]", str(messages[1]["content"]), re.MULTILINE)
    return json.dumps({"rationale": "It fits.", "ids": [ids[1]]})


def test_an_endpoint_selects_and_is_not_asked_twice(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    out = tmp_path / "e.jsonl"
    with FaultyServer(second_item) as server:
        named = ["inject.endpoint=x", f"endpoints.x.base_url={json.dumps(server.base_url)}", "endpoints.x.model=m"]
        config = load_config(None, [*SET, *named])
        found = play(config, out)
        shown = [step.injection for trajectory in found for step in trajectory.steps]
        assert shown
        wanted = sorted(item.id for item in ITEMS)[1]
        assert all(i and (i.item_ids, i.served_by) == ((wanted,), "llm:x/m") for i in shown)
        selections = read_jsonl(tmp_path / "e.selections.jsonl", CachedReply)
        assert len(selections) == server.answered == len({s.key for s in selections})
        assert all(s.reply and "It fits." in s.reply.text and s.reply.prompt_tokens > 0 for s in selections)
        lines = out.read_bytes().splitlines(keepends=True)
        out.write_bytes(lines[0])  # as if the command had been killed after one episode
        asked = server.answered
        assert [t.id for t in play(config, out)] == [t.id for t in found]
        assert server.answered == asked
    assert len(read_jsonl(tmp_path / "e.selections.jsonl", CachedReply)) == asked


def test_the_policy_itself_is_asked_and_its_noise_is_never_served(tmp_path: Path) -> None:
    found = play(load_config(None, [*SET, "rollout.max_steps=1"]), tmp_path / "e.jsonl", tasks=1)
    lines = read_jsonl(tmp_path / "e.selections.jsonl", CachedReply)
    replies = [line for line in lines if line.reply]
    assert 1 <= len(replies) <= 3, "one selection; a try that would not fit into the context is not made"
    assert {line.key for line in lines if line.rejected} >= {line.key for line in replies}
    served = {step.injection.served_by for t in found for step in t.steps if step.injection}
    assert served <= {"lexical after llm failed: invalid"}


def test_a_judge_scores_what_the_environment_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.toy.ToyEpisode.step", _answers)
    found = play(load_config(None, [*SET, "inject.pattern=none", "env.name=claiming"]), tmp_path / "e.jsonl")
    assert [t.score for t in found] == [1.0] * 4


def _answers(episode: ToyEpisode, _: object) -> None:
    episode.answer = "7"
