"""Public fakes of the backends: episodes from a script and trainings that change nothing but the record.

For tests of code above the backends, and to try an environment or a study without a model. Needs no torch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path

from internalize.config.schema import RolloutConfig
from internalize.config.specs import RolloutSpec, TrainSpec
from internalize.inference.agent import ChatAgent
from internalize.inference.scripted import ScriptedChat
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.interfaces import Agent, ChatModel, Environment, Renderer
from internalize.records import Checkpoint, DistillExample, Drift, Message, Task, TrainSummary, Trajectory, content_hash
from internalize.rollout.local import LocalRollouts
from internalize.runs.store import read_jsonl

from .run import Backends

Says = Callable[[Checkpoint, Sequence[Message]], str]  # the answer of a checkpoint to these messages
STARTER = Checkpoint(id="starter", parent=None, iteration=0, pool_version=None, config_digest="", path="")


class ScriptedPolicy:
    """`interfaces.Policy` whose answers come from a function."""

    def __init__(self, checkpoint: Checkpoint, says: Says, limits: RolloutConfig) -> None:
        self.checkpoint, self._says, self._limits = checkpoint, says, limits

    @property
    def agent(self) -> Agent:
        """Acts by the script, in the bracket format."""
        return ChatAgent(self.chat(), TOOL_FORMATS["bracket"], self._limits, max_context=100_000, wave=8)

    def chat(self, name: str = "self") -> ChatModel:
        """The script as a chat model."""
        return ScriptedChat(lambda messages: self._says(self.checkpoint, messages), name)


class ScriptedLoader:
    """`interfaces.PolicyLoader` of scripted policies."""

    def __init__(self, says: Says, limits: RolloutConfig) -> None:
        self._says, self._limits = says, limits

    async def load(self, checkpoint: Checkpoint, root: Path) -> ScriptedPolicy:  # noqa: ARG002 - there are no weights
        """The scripted policy of a checkpoint."""
        return ScriptedPolicy(checkpoint, self._says, self._limits)


class ScriptedTraining:
    """`interfaces.TrainBackend` that trains nothing: it counts examples and makes up ids."""

    async def train(
        self, spec: TrainSpec, progress: Callable[[int, int, float], None] | None = None
    ) -> tuple[Checkpoint, TrainSummary]:
        """A new checkpoint whose id is made from its parent's id and the examples."""
        examples = read_jsonl(spec.examples, DistillExample)
        (spec.root / spec.out).mkdir(parents=True, exist_ok=True)
        if progress:
            progress(1, 1, 0.0)
        seen = [spec.parent.id, *(example.trajectory_id for example in examples)]
        return spec.result(content_hash(seen)), TrainSummary(steps=1, accepted=len(examples), action_tokens=0)

    async def average(self, a: Checkpoint, b: Checkpoint, root: Path, out: str) -> Checkpoint:  # noqa: ARG002
        """A new checkpoint record; nothing is averaged."""
        return b.model_copy(update={"id": content_hash([a.id, b.id]), "path": out})

    async def drift(self, checkpoint: Checkpoint, root: Path, episodes: Sequence[Trajectory]) -> Drift:  # noqa: ARG002
        """A drift of zero."""
        fields = {"iteration": checkpoint.iteration, "checkpoint": checkpoint.id}
        return Drift(**fields, tokens=0, entropy=None, kl_to_base=None, held_out_nll=0.0)


class ScriptedRollouts:
    """`interfaces.RolloutBackend` over scripted policies in one environment."""

    def __init__(self, loader: ScriptedLoader, env: Environment) -> None:
        self._inner = LocalRollouts(loader, lambda _: env)

    def run(self, spec: RolloutSpec, tasks: Sequence[Task], done: Collection[str] = ()) -> AsyncIterator[Trajectory]:
        """Play the missing episodes."""
        return self._inner.run(spec, tasks, done)


def scripted_backends(
    env: Environment,
    says: Says = lambda checkpoint, messages: "",  # noqa: ARG005 - it says nothing
    renderer: Renderer | None = None,
    limits: RolloutConfig | None = None,
) -> Backends:
    """Backends without a model. They need a `renderer` to make examples for training."""
    loader = ScriptedLoader(says, limits or RolloutConfig())
    return Backends(ScriptedRollouts(loader, env), ScriptedTraining(), loader, renderer, STARTER)
