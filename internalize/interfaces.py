"""The seams: every Protocol between stages. Only records and paths cross a seam, so it can be a process boundary."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from internalize.config.schema import RolloutConfig
from internalize.config.specs import RolloutSpec, TrainSpec
from internalize.records import (
    ActionRequest,
    ActionTurn,
    ChatRequest,
    Checkpoint,
    Claim,
    Drift,
    Experience,
    Generation,
    Judgement,
    Message,
    Reply,
    Sampling,
    Step,
    Task,
    ToolCall,
    ToolSpec,
    TrainSummary,
    Trajectory,
)
from internalize.records.packed import Packed

if TYPE_CHECKING:
    from torch import Tensor, nn


class Engine(Protocol):
    """Samples continuations of prompts. Concurrent calls may be batched; results do not depend on the batch."""

    async def generate(
        self, prompt_ids: Sequence[int], *, conversation: str, seed: int, sampling: Sampling | None = None
    ) -> Generation:
        """Continue `prompt_ids`. `conversation` names the episode, so that its cache can be reused.

        `sampling` None = the engine's own settings, with which actions are sampled. Raises InfrastructureError if there
        is no answer.
        """
        ...

    def release(self, conversation: str) -> None:
        """Forget the cache of a finished conversation; unknown names are ignored."""
        ...

    def reset(self) -> None:
        """Forget every cache, so that what follows does not depend on what ran before."""
        ...


class ChatModel(Protocol):
    """A language model that writes, selects or judges experience as text: the policy itself or an endpoint."""

    name: str

    async def complete(self, request: ChatRequest) -> Reply:
        """One answer. Raises InfrastructureError if there is none, Incomplete if the budget is spent."""
        ...


class Judge(Protocol):
    """Grades free-form answers."""

    async def judge(self, claim: Claim) -> Judgement:
        """Grade an answer. A failure of the judge is a Judgement without a score, never a score of 0."""
        ...


class Episode(Protocol):
    """One run of one task. Single use.

    It may have `close()`, and `claim() -> Claim | None`, which is called when `score` is None to get what a judge shall
    grade.
    """

    def prompt(self) -> tuple[Message, ...]:
        """System and user message the policy starts from, without experience and without tool descriptions."""
        ...

    def step(self, call: ToolCall | None) -> str | None:
        """The observation after `call` (None = the turn held no valid call), or None when the episode is over.

        Raises InfrastructureError if the environment broke.
        """
        ...

    def score(self) -> float | None:
        """Reward in [0, 1] after the end, or None if it cannot be judged."""
        ...


class Situation(NamedTuple):
    """What an agent knows at one decision: the question, the results of its last turn, and its earlier calls.

    There are no results at the start. `taken` holds the tool and the argument of each call so far, in order. A call of
    several arguments has one pair for each argument, with its first argument last.
    """

    question: str
    results: tuple[str, ...] = ()
    taken: tuple[tuple[str, str], ...] = ()

    @property
    def observation(self) -> str | None:
        """The results as one text; None at the start."""
        return "\n".join(self.results) if self.results else None


@dataclass(frozen=True, eq=False)
class CueExtractor:
    """Something that rules of experience can name in a situation: as a condition, as an argument of a call, or both.

    `read` returns the value of every key that is present. The three texts are how it reads in a rule's sentence, with
    `{}` for the key; an extractor whose texts have no `{}` has one key, "". Rules are stored as sentences: no two
    extractors of an environment may have the same text, and a text must not change once pools hold it.
    """

    read: Callable[[Situation], Mapping[str, str]]
    cue: str = ""  # the condition that a key is present: 'When the result has "{}"'
    state: str = ""  # the same as a second condition: "the asked word is {}"
    value: str = ""  # the value as the argument of a call: 'the value of "{}"'
    in_question: bool = False  # the value is present at every step, so it explains a single call less well
    accepts: Callable[[Situation, str], bool] | None = None  # whether an argument is right, where several may be

    def find(self, situation: Situation, keys: Collection[str]) -> Mapping[str, str]:
        """The values of the given `keys` that are present in the situation."""
        return {key: value for key, value in self.read(situation).items() if key in keys}


class Environment(Protocol):
    """A source of tasks and of episodes to run them in.

    It may have `splits() -> tuple[str, ...]`, `close()`, `at_once: int` (the most episodes it has room for), and
    `waits = True`: its steps wait for another process or the network, and are run in a thread. Its class may have
    `cues: tuple[CueExtractor, ...]`: what rules about it can name, in place of `experience.cues.GENERIC`.
    """

    name: str
    tools: tuple[ToolSpec, ...]
    evidence_actions: frozenset[str]  # actions that gather evidence; answering before any is premature
    final_actions: frozenset[str]  # actions that end an episode

    def tasks(self, split: str) -> tuple[Task, ...]:
        """All tasks of a split in a fixed order. Raises TaskError for an unknown split."""
        ...

    def episode(self, task: Task) -> Episode:
        """A fresh episode."""
        ...

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        """The scripted reference solution; empty if the source has none."""
        ...


class Selector(Protocol):
    """Picks the items worth showing at one decision."""

    async def select(
        self, messages: Sequence[Message], items: Sequence[Experience], k: int
    ) -> tuple[tuple[str, ...], str]:
        """At most `k` item ids, best first, and the name of the selector that served."""
        ...


class Context(NamedTuple):
    """Token ids up to the end of the generation prompt; the context without a hint starts with `ids[:fork]` too."""

    ids: tuple[int, ...]
    fork: int


class ToolFormat(Protocol):
    """Writes tool calls as text, and reads them."""

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """What the system message says about the tools."""
        ...

    def format(self, call: ToolCall, tools: Sequence[ToolSpec] = ()) -> str:
        """The text of a call; `parse` of it gives the call back."""
        ...

    def parse(self, text: str, tools: Sequence[ToolSpec]) -> Message:
        """The turn as a message, with the valid tool calls in `text` in their order."""
        ...

    def problem(self, text: str, tools: Sequence[ToolSpec]) -> str:
        """What is wrong with an invalid call in `text`; "" if there is none."""
        ...


class Renderer(Protocol):
    """Translates messages to token ids and back for one model. Sampled ids are never encoded again.

    `tools` are the ones passed to the model's template; text formats describe tools in `instructions` instead.
    """

    tokenizer: Any
    stop_ids: frozenset[int]  # each ends a turn

    @property
    def opens_thought(self) -> bool:
        """Whether the generation prompt ends with the opening mark of a thought."""
        ...

    @property
    def way(self) -> str:
        """How tool calls are written, as a label for people."""
        ...

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """What the system message says about the tools; "" if they are passed to the template."""
        ...

    def context(
        self, prompt: Sequence[Message], steps: Sequence[Step], hint: str = "", tools: Sequence[ToolSpec] = ()
    ) -> Context:
        """What the policy sees after these steps; with a `hint`, the last message ends with it on a new line."""
        ...

    def prefix_stable(self, prompt: Sequence[Message], steps: Sequence[Step], tools: Sequence[ToolSpec] = ()) -> bool:
        """Whether each context starts with the one before it and the action sampled there."""
        ...

    def parse(self, ids: Sequence[int], tools: Sequence[ToolSpec]) -> tuple[Message, str]:
        """The sampled turn as a message, and what is wrong with a call in it ("" = nothing)."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a sampled turn without its end."""
        ...

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Ids of a turn given as text, with its end."""
        ...

    def encode_turn(self, message: Message, tools: Sequence[ToolSpec] = ()) -> tuple[int, ...]:
        """Ids of a turn that was not sampled (a log's, say), with its end."""
        ...

    def thought_length(self, ids: Sequence[int]) -> int:
        """How many ids of a sampled turn belong to its thought, the closing mark included."""
        ...

    def closing(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids that close the thought in which these ids of a turn end; () if no thought is open."""
        ...


class Agent(Protocol):
    """Acts in episodes: `wave` episodes at a time. `independent` = no episode's samples depend on the others.

    A resumed stage plays only the missing ones of independent episodes. Other episodes share a batch, whose composition
    must be the same again, so a whole wave is played again.
    """

    @property
    def limits(self) -> RolloutConfig:
        """The limits of an episode."""
        ...

    @property
    def wave(self) -> int:
        """How many episodes run together."""
        ...

    @property
    def independent(self) -> bool:
        """Whether an episode's samples do not depend on the episodes it runs together with."""
        ...

    @property
    def judge(self) -> Judge | None:
        """Grades the answers that the environment cannot grade."""
        ...

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """What the system message says about the tools; "" if they are passed to the model in another way."""
        ...

    async def act(self, request: ActionRequest) -> ActionTurn | None:
        """The next turn, or None if the context is full. Raises InfrastructureError if there is no answer."""
        ...

    def release(self, episode: str) -> None:
        """Drop the cache of a finished episode."""
        ...

    def reset(self) -> None:
        """Drop everything through which one wave could influence the next."""
        ...


class Policy(Protocol):
    """The weights of one checkpoint, ready to act in episodes and to answer chat requests."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The record of these weights."""
        ...

    @property
    def agent(self) -> Agent:
        """The agent that acts with these weights."""
        ...

    def chat(self, name: str = "self") -> ChatModel:
        """The chat model `name`: "self" = these weights, else an endpoint of the recipe. Raises ConfigError."""
        ...


class PolicyLoader(Protocol):
    """Loads checkpoints as policies. Loading a checkpoint may make the policies loaded before unusable."""

    async def load(self, checkpoint: Checkpoint, root: Path) -> Policy:
        """The policy of a checkpoint whose path is relative to `root`. Raises DataError for weights that do not fit."""
        ...


class RolloutBackend(Protocol):
    """Plays episodes, in this process or on other machines."""

    def run(self, spec: RolloutSpec, tasks: Sequence[Task], done: Collection[str] = ()) -> AsyncIterator[Trajectory]:
        """Yield every episode of the tasks whose id is not in `done`, as soon as it ends.

        A failed episode is yielded with its `failure`. Raises Incomplete when a budget is spent, after the episodes
        under way have been yielded.
        """
        ...


class TrainBackend(Protocol):
    """Trains and averages weights, and measures their drift from the starter."""

    async def train(
        self, spec: TrainSpec, progress: Callable[[int, int, float], None] | None = None
    ) -> tuple[Checkpoint, TrainSummary]:
        """Train and write the new weights. `progress` receives the optimizer step, the number of steps and the loss."""
        ...

    async def average(self, a: Checkpoint, b: Checkpoint, root: Path, out: str) -> Checkpoint:
        """Write the mean of two sets of weights to `root / out`. The other fields of the record are those of `b`."""
        ...

    async def drift(self, checkpoint: Checkpoint, root: Path, episodes: Sequence[Trajectory]) -> Drift:
        """How far a checkpoint is from the starter, on episodes that it played."""
        ...


class Scorer(Protocol):
    """Runs a model over given actions: for the student and the teacher of a distillation, and for measurements."""

    def score(self, model: nn.Module, packs: Sequence[Packed]) -> Iterator[Tensor]:
        """Yield the last hidden states [A, D] of each of `packs`, at the positions that predict its action tokens.

        They equal those of a plain pass over each action's whole context, with gradients where they are enabled. Packs
        come one by one, so that a caller can move each result away. The caller sets the mode and the weights of the
        model.
        """
        ...


class Tracker(Protocol):
    """Receives the metrics of a run while it works, for a dashboard for example."""

    def describe(self, facts: Mapping[str, str]) -> None:
        """Receive the keys of the recipe by name and, later, the checkpoints with their parents."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Receive metrics by name at an iteration, or at an optimizer step if their names begin with "train/"."""
        ...

    def figure(self, name: str, path: Path) -> None:
        """Receive the path of a picture that was written."""
        ...

    def close(self) -> None:
        """Finish: no call follows."""
        ...
