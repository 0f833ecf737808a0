"""Every record of the flow, in flow order. They are frozen and validated, and are stored as JSON, one a line.

    Task -> Trajectory(Step(Injection)) -> Experience -> PoolEdit -> DistillExample -> Checkpoint -> EvalResult

The context of a step is derived (`Trajectory.context`): storing it would make files quadratic in the turns. Ids are
content hashes, a score of None means unscored (never 0), and an injection belongs only to its step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue

from .messages import (
    ChatRequest,
    ContentPart,
    Count,
    Finite,
    Generation,
    Message,
    Record,
    Reply,
    Sampling,
    Share,
    ToolCall,
    ToolSpec,
    content_hash,
    is_deep,
    json_value,
    result_of,
)
from .packed import SelfCheck

__all__ = [
    "ActionRequest", "ActionSpan", "ActionTurn", "Candidate", "ChatRequest", "Checkpoint", "Claim",
    "ContentPart", "DistillExample", "EvalResult", "Experience", "Generation", "Granularity", "Injection",
    "Judgement", "Message", "Mode", "Origin", "Pattern", "PoolEdit", "Record", "Reply", "Sampling", "SelfCheck",
    "Stage", "StageKind", "StageMark", "Step", "Task", "Termination", "ToolCall", "ToolSpec", "Trajectory",
    "content_hash", "is_deep", "json_value", "result_of",
]  # fmt: skip

Granularity = Literal["principle", "instance"]
Pattern = Literal["none", "global", "stepwise"]
Termination = Literal["answered", "max_steps", "context_full", "failed"]
Mode = Literal["internalized", "in_context"]  # measured without experience in the prompt, or with the pool
Candidate = Literal[1, 2]  # 2: the milder candidate that the gate tries after rejecting the first
# contrast: found by comparing episodes. chance: its lift may be chance. writer: a language model wrote it. retired:
# episodes in which it was shown did measurably worse. cap: the pool was too large.
Cause = Literal["contrast", "chance", "writer", "retired", "cap", "imported", "planted"]
StageKind = Literal["rollout", "extract", "collect", "round", "distill", "episodes", "evaluate", "gate", "second"]


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


class Injection(Record):
    """Experience shown at one step. `served_by` names the selector that really chose the items."""

    item_ids: tuple[str, ...]
    text: str
    served_by: str


class ActionTurn(Record):
    """What an agent does at one decision.

    `text` is the turn as sampled; `message` is the parsed turn: content, reasoning, tool calls in order (none if no
    call in it is valid). `token_ids` and `logprobs` are as sampled (raw, temperature 1), including the end of the turn;
    both are empty for a chat endpoint or an imported log. The ids in `[forced[0], forced[1])` were inserted to close a
    thought that had spent its budget; they were not sampled, and their log-probability is 0.
    """

    text: str
    message: Message
    token_ids: tuple[Count, ...] = ()
    logprobs: tuple[Finite, ...] = ()
    forced: tuple[Count, Count] = (0, 0)
    finish: Literal["stop", "length"] = "stop"
    problem: str = ""  # what is wrong with an invalid call of the turn ("" = nothing)


class Step(ActionTurn):
    """One decision and its outcome: a result for each call that was executed, in order.

    A turn without a valid call is answered by one user message. The step that ends the episode has fewer results than
    calls (or none).
    """

    injection: Injection | None = None  # experience shown only at this step, never part of the history
    results: tuple[Message, ...] = ()
    seconds: Finite = 0.0
    left_out: str = ""  # why the turn is context that no training learns ("" = it may be learnt)
    shown: Message | None = None  # the turn as later contexts hold it, if the user's own agent rewrote it

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The turn's tool calls."""
        return self.message.tool_calls

    @property
    def ended(self) -> bool:
        """Whether the episode ended with this step."""
        return len(self.results) < max(1, len(self.calls))

    @property
    def observation(self) -> str | None:
        """The results as one text; None if the episode ended with this step."""
        return None if self.ended else "\n".join(result.text for result in self.results)


class ActionRequest(Record):
    """The input of an agent at one decision: the prompt (with a global injection, if any), the steps since, a hint."""

    episode: str  # the id of the trajectory
    prompt: tuple[Message, ...]
    steps: tuple[Step, ...] = ()
    tools: tuple[ToolSpec, ...] = ()
    hint: str = ""
    seed: int = 0
    max_tokens: int | None = None  # a lower limit than the recipe's; None = the recipe's


class Origin(Record):
    """The log format of an imported episode, and the content that the records of this package cannot hold.

    `beyond` is a JSON Patch (RFC 6902) that turns what the exporter writes into what was read.
    """

    format: str
    beyond: JsonValue = None


class Trajectory(Record):
    """One episode. `score` None = unscored; `failure` then says why."""

    id: str
    task_id: str
    env: str
    split: str
    family: str = ""
    iteration: Count
    seed: int
    attempt: Count = 0
    pattern: Pattern = "none"
    checkpoint: str
    pool_version: str | None = None
    prompt: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()  # passed to the model's template; () = the prompt describes the tools
    global_injection: Injection | None = None
    steps: tuple[Step, ...] = ()
    termination: Termination
    score: Share | None = None
    failure: str | None = None
    origin: Origin | None = None  # set for an imported episode
    branches: tuple[Trajectory, ...] = ()  # further conversations of the episode: sub-agents, compacted histories

    @property
    def question(self) -> str:
        """What was asked: the last user message of the prompt, "" if there is none."""
        return next((m.text for m in reversed(self.prompt) if m.role == "user"), "")

    @property
    def answer(self) -> str | None:
        """What the episode ended with: the argument of its last call, or a last turn without calls; None if cut off."""
        last = self.steps[-1] if self.steps else None
        if last is None or not last.ended:
            return None
        return last.calls[-1].argument if last.calls else last.message.text

    @property
    def text_only(self) -> bool:
        """Whether sampled ids are missing (a chat endpoint, an imported log), so that training encodes the text."""
        return any(not step.token_ids for step in self.steps)

    def context(self, step: int) -> tuple[Message, ...]:
        """The clean messages on which step number `step` was decided (no injection in them)."""
        messages = list(self.prompt)
        for past in self.steps[:step]:
            messages += [past.shown or past.message, *past.results]
        return tuple(messages)


class Experience(Record):
    """One item of a pool. `id` is the hash of its text, so it never changes meaning."""

    id: str
    text: str
    granularity: Granularity
    source: str
    evidence: tuple[str, ...] = ()  # trajectory ids
    parents: tuple[str, ...] = ()
    iteration: Count = 0
    support: Count = 0  # decisions seen that back the item (0: not counted)
    lift: float = Field(0.0, ge=-1, le=1)  # success rate when followed minus when not, in [-1, 1]
    origins: tuple[str, ...] = ()  # hosts or pages of its evidence, at most eight (none: not known)

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
    cause: Cause | None = None  # None: not known, or no change


class ActionSpan(Record):
    """Where one action lies in the clean ids, and what the teacher sees instead of the plain prompt.

    Clean ids are `token_ids[start:end]`. The teacher's context for it is
    `token_ids[:fork] + branch`, followed by the same action ids; `branch` empty means the clean context.
    Both contexts begin at `origin`, which is 0 unless the template rewrites earlier turns: then each step has its own.
    """

    start: Count
    end: Count
    fork: Count = 0
    branch: tuple[Count, ...] = ()
    origin: Count = 0


class DistillExample(Record):
    """One trajectory ready for the trainer. Step-wise: `spans[i].branch`. Global: `teacher_prompt`.

    With `teacher_prompt`, the teacher's ids are `teacher_prompt + token_ids[prompt_length:]`.
    """

    trajectory_id: str
    token_ids: tuple[Count, ...]
    spans: tuple[ActionSpan, ...]
    prompt_length: Count
    teacher_prompt: tuple[Count, ...] = ()
    weight: Finite = 1.0

    @property
    def rewritten(self) -> bool:
        """Whether no single sequence holds the example: `token_ids` then has a whole context for every step."""
        return any(span.origin for span in self.spans)


class TrainSummary(Record):
    """train.json: what one training did. Losses in nats per action token; None when there was nothing to train on.

    `accepted` trajectories were trained on and `rejected` ones were not; None = not counted. `divergence_before` and
    `_after` are unweighted, over the trajectories of the first optimizer step: before any update and after the last
    one. `held_out_before` and `_after` are measured on `held_out` trajectories that were not trained on, against the
    teacher of the start. A training on files names them in `trajectories` and `pool`. Of `tensors` that were trained
    (0 = not counted), `without_gradient` got none in the first optimizer step.
    """

    steps: Count = 0
    accepted: Count = 0
    rejected: Count | None = None
    action_tokens: Count = 0
    first_loss: Finite | None = None
    last_loss: Finite | None = None
    divergence_before: Finite | None = None
    divergence_after: Finite | None = None
    held_out: Count = 0
    held_out_before: Finite | None = None
    held_out_after: Finite | None = None
    stopped_early: bool = False
    teacher_nll: Finite | None = None
    tensors: Count = 0
    without_gradient: Count = 0
    seconds: Finite = 0.0
    trajectories: str = ""
    pool: str = ""

    @property
    def accepted_share(self) -> float | None:
        """Share of the trajectories that were trained on; None where it is not known."""
        judged = self.accepted + (self.rejected or 0)
        return self.accepted / judged if judged and self.rejected is not None else None


class Checkpoint(Record):
    """The record of one set of weights. `path` is relative to the run directory ("" = the starter)."""

    id: str
    parent: str | None
    iteration: Count
    pool_version: str | None
    config_digest: str
    path: str

    def folder(self, root: Path) -> Path | None:
        """The folder of the weights; None for the starter, whose weights the recipe names."""
        return root / self.path if self.path else None


class EvalResult(Record):
    """One task evaluated once in one mode. `success` None = unscored."""

    suite: str
    mode: Mode
    iteration: Count
    checkpoint: str
    pool_version: str | None
    task_id: str
    family: str = ""
    success: Share | None
    premature: bool = False
    turns: Count = 0
    action_tokens: Count = 0
    invalid: Count = 0
    truncated: bool = False
    nll: Finite = 0.0  # mean -log p of sampled action tokens (nats): an estimate of policy entropy


class Drift(Record):
    """drift.json: the drift of one checkpoint from the starter, nats per token. None = nothing to measure it on."""

    iteration: Count
    checkpoint: str
    tokens: Count
    entropy: Finite | None  # of the next action token
    kl_to_base: Finite | None  # KL(policy || starter)
    held_out_nll: Finite  # mean -log p of a fixed text


class Stage(Record):
    """One stage of a run; its records lie in the folder of `iteration`.

    `round` numbers the stages of the kinds `collect` and `round`. Only `episodes` and `evaluate` have a `suite`, a
    `mode`, a `policy` (the number of updates of the measured policy) and a `candidate`.
    """

    iteration: Count
    kind: StageKind
    round: Count = 0
    suite: str = ""
    mode: Mode | None = None
    policy: Count = 0
    candidate: Candidate = 1


class StageMark(Record):
    """One line of progress.jsonl: this stage is finished and its records are on disk.

    `seconds` count from the mark before, or from the start of the process. Memory is the peak of the process so far, in
    bytes; `device_memory` is that of tensors on an accelerator. `compute` is that section of the recipe. `files` are
    the SHA-256 of what the stage wrote, by name in the run directory. With `begun` the stage is not finished: it is
    about to replace these files, or to remove those whose digest is "". `chain` depends on this line and all before it;
    version 1 and early version 2 have neither.
    """

    stage: Stage
    seconds: Finite = 0.0
    memory: Count = 0
    device_memory: Count = 0
    host: str = ""
    compute: dict[str, JsonValue] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    begun: bool = False
    chain: str = ""  # the last field: it is computed over the text before it


class Claim(Record):
    """An answer that only a judge can grade."""

    question: str
    reference: str
    answer: str


class Judgement(Record):
    """A judge's verdict. `score` None = unscored: the judge failed or disagreed with itself."""

    score: Share | None
    judge: str
    reason: str = ""
