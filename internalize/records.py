"""Every record of the flow, in flow order, and the one- or two-method Protocols between stages.

    Task -> Trajectory(Step(Injection)) -> Experience -> PoolEdit -> DistillExample -> Checkpoint -> EvalResult

Records are frozen, validated and JSON-serializable (one record a line). Left out on purpose: the
context of each step. It is derived (`Trajectory.context`), because storing it would make
files quadratic in the number of turns. What must not change: ids are content hashes, `score is
None` means unscored (never 0), and history is clean: an injection belongs to its step alone.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Granularity = Literal["principle", "instance"]
Pattern = Literal["none", "global", "stepwise"]
Termination = Literal["answered", "max_steps", "context_full", "failed"]
Mode = Literal["internalized", "in_context"]  # measured without experience in the prompt, or with the pool
Candidate = Literal[1, 2]  # 2: the milder one that the gate tries when the first loses
StageKind = Literal[
    "rollout", "extract", "collect", "round", "distill", "episodes", "evaluate", "gate", "second", "signs"
]


def content_hash(value: Any) -> str:
    """12 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Record(BaseModel):
    """Frozen base; an unknown field is an error, so that old files fail loudly."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ToolCall(Record):
    """One call in the OpenAI chat format; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class Message(Record):
    """One chat message (OpenAI roles)."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Task(Record):
    """One problem of an environment. `id` is the hash of its content; build it with `Task.new`."""

    id: str
    env: str
    split: str
    question: str
    answer: str | None = None
    family: str = ""
    state: dict[str, JsonValue] = Field(default_factory=dict)

    @staticmethod
    def new(
        env: str, split: str, question: str, answer: str | None = None, family: str = "", **state: JsonValue
    ) -> Task:
        """A task whose id covers env, question, answer and state, but not the split."""
        digest = content_hash([env, question, answer, state])
        return Task(id=digest, env=env, split=split, question=question, answer=answer, family=family, state=state)


class ToolSpec(Record):
    """One tool as the policy is told of it: `argument` names its single text argument.

    A tool of several (or no) arguments has their JSON schema in `parameters`; its actions carry one JSON object.
    """

    name: str
    argument: str
    description: str
    parameters: dict[str, JsonValue] | None = None


class Action(Record):
    """A parsed action: `name` of the tool and its one text argument (JSON text for several)."""

    name: str
    argument: str


class Injection(Record):
    """Experience shown at one step. `served_by` names the selector that really chose the items."""

    item_ids: tuple[str, ...]
    text: str
    served_by: str


class Step(Record):
    """One decision. `token_ids` and `logprobs` are as sampled (raw, temperature 1), end of turn included."""

    injection: Injection | None = None
    action_text: str
    action: Action | None = None  # None: the text is no valid action
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    observation: str | None = None  # None: the episode ended with this step
    finish: Literal["stop", "length"] = "stop"
    seconds: float = 0.0


class Trajectory(Record):
    """One episode. `score` None = unscored; `failure` then says why."""

    id: str
    task_id: str
    env: str
    split: str
    family: str = ""
    iteration: int
    seed: int
    attempt: int = 0
    pattern: Pattern = "none"
    checkpoint: str
    pool_version: str | None = None
    prompt: tuple[Message, ...]
    global_injection: Injection | None = None
    steps: tuple[Step, ...] = ()
    termination: Termination
    score: float | None = None
    failure: str | None = None

    @property
    def question(self) -> str:
        """What was asked: the last user message of the prompt, "" if there is none."""
        return next((m.content for m in reversed(self.prompt) if m.role == "user"), "")

    @property
    def text_only(self) -> bool:
        """Whether sampled ids are missing (a chat endpoint, an imported log): to be trained on as text."""
        return any(not step.token_ids for step in self.steps)

    def context(self, step: int) -> tuple[Message, ...]:
        """The clean messages that step number `step` was decided on (no injection in them)."""
        messages = list(self.prompt)
        for past in self.steps[:step]:
            messages.append(Message(role="assistant", content=past.action_text))
            messages.append(Message(role="user", content=past.observation or ""))
        return tuple(messages)


class Experience(Record):
    """One item of a pool. `id` is the hash of its text, so it never changes meaning."""

    id: str
    text: str
    granularity: Granularity
    source: str
    evidence: tuple[str, ...] = ()  # trajectory ids
    parents: tuple[str, ...] = ()
    iteration: int = 0
    support: int = 0  # decisions seen that back the item (0: not counted)
    lift: float = 0.0  # success rate when followed minus when not, in [-1, 1]

    @staticmethod
    def new(text: str, granularity: Granularity, source: str, **rest: Any) -> Experience:
        """An item whose id is the hash of its text."""
        return Experience(id=content_hash(text), text=text, granularity=granularity, source=source, **rest)


class PoolEdit(Record):
    """One change of a pool. ADD has an item; UPDATE and MERGE have an item and targets; DELETE has targets."""

    op: Literal["ADD", "UPDATE", "DELETE", "NONE", "MERGE"]
    item: Experience | None = None
    targets: tuple[str, ...] = ()
    reason: str = ""


class ActionSpan(Record):
    """Where one action lies in the clean ids, and what the teacher sees instead of the plain prompt.

    Clean ids are `token_ids[start:end]`. The teacher's context for it is
    `token_ids[:fork] + branch`, followed by the same action ids; `branch` empty means the clean context.
    Both contexts begin at `origin`, which is 0 unless the template rewrites earlier turns: then each step has its own.
    """

    start: int
    end: int
    fork: int = 0
    branch: tuple[int, ...] = ()
    origin: int = 0


class DistillExample(Record):
    """One trajectory ready for the trainer. Step-wise: `spans[i].branch`. Global: `teacher_prompt`.

    With `teacher_prompt`, the teacher's ids are `teacher_prompt + token_ids[prompt_length:]`.
    """

    trajectory_id: str
    token_ids: tuple[int, ...]
    spans: tuple[ActionSpan, ...]
    prompt_length: int
    teacher_prompt: tuple[int, ...] = ()
    weight: float = 1.0

    @property
    def rewritten(self) -> bool:
        """Whether no single sequence holds it: `token_ids` then has a whole context and action for every step."""
        return any(span.origin for span in self.spans)


class Checkpoint(Record):
    """The record of one set of weights. `path` is relative to the run directory ("" = the starter)."""

    id: str
    parent: str | None
    iteration: int
    pool_version: str | None
    config_digest: str
    path: str


class EvalResult(Record):
    """One task evaluated once in one mode. `success` None = unscored."""

    suite: str
    mode: Mode
    iteration: int
    checkpoint: str
    pool_version: str | None
    task_id: str
    family: str = ""
    success: float | None
    premature: bool = False
    turns: int = 0
    action_tokens: int = 0
    invalid: int = 0
    truncated: bool = False
    nll: float = 0.0  # mean -log p of sampled action tokens (nats): an estimate of policy entropy


class Stage(Record):
    """One stage of a run; its records lie in the folder of `iteration`.

    `round` counts the rounds of `collect` and `round`. `suite`, `mode`, `policy` (updates of the policy that is
    measured) and `candidate` are of `episodes` and `evaluate`.
    """

    iteration: int
    kind: StageKind
    round: int = 0
    suite: str = ""
    mode: Mode | None = None
    policy: int = 0
    candidate: Candidate = 1


class StageMark(Record):
    """One line of progress.jsonl: this stage is finished and its records are on disk.

    `seconds` since the mark before, or since the process took the run up. Memory is the peak of the process so far,
    bytes: `device_memory` that of tensors on an accelerator.
    """

    stage: Stage
    seconds: float = 0.0
    memory: int = 0
    device_memory: int = 0


class Generation(Record):
    """What an engine returns: sampled ids, their raw logprobs, their text (end of turn not in it)."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: Literal["stop", "length"]


class ChatRequest(Record):
    """What a chat model is asked. Temperature 0 = greedy.

    A server is asked to obey `response_schema` if it can; the caller validates the answer all the same.
    """

    messages: tuple[Message, ...]
    response_schema: dict[str, JsonValue] | None = None
    max_tokens: int = Field(1024, ge=1)
    temperature: float = Field(0.0, ge=0)
    seed: int = 0


class Reply(Record):
    """What a chat model answers, `reasoning` kept apart from `text`. Token counts are the server's own (0: unknown)."""

    text: str
    reasoning: str = ""
    finish: Literal["stop", "length"] = "stop"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Claim(Record):
    """An answer that only a judge can grade."""

    question: str
    reference: str
    answer: str


class Judgement(Record):
    """A judge's verdict. `score` None = unscored: the judge failed or disagreed with itself."""

    score: float | None
    judge: str
    reason: str = ""


class Sampling(Record):
    """How one answer is sampled. Temperature 0 = greedy."""

    max_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0)
