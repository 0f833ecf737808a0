"""One running sample of an inspect_ai task: its solver runs in an asyncio task, and the policy answers for its model.

inspect_ai runs one evaluation for each process, so the solver runs without one, in a context of its own with the
variables that solvers, tools and scorers read (the model, the state of the sample, its store and transcript).
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

from inspect_ai._eval.task.generate import task_generate
from inspect_ai._eval.task.util import sample_messages
from inspect_ai._util.registry import RegistryInfo, set_registry_info
from inspect_ai.log._transcript import Transcript, init_transcript
from inspect_ai.model import ChatMessageAssistant, GenerateConfig, Model, ModelAPI, ModelName, ModelOutput
from inspect_ai.model._model import init_active_model, init_sample_model_data
from inspect_ai.scorer import Target
from inspect_ai.solver import TaskState
from inspect_ai.solver._task_state import sample_state, set_sample_state
from inspect_ai.tool import ToolCall as InspectCall
from inspect_ai.util import LimitExceededError, message_limit, time_limit
from inspect_ai.util._store import init_subtask_store

from internalize.errors import InfrastructureError, first_line
from internalize.records import ToolCall, ToolSpec

REPLY = ToolSpec(name="reply", argument="text", description="Write a message, such as the final answer.")
_NAME = "internalize/policy"
_WHOLE = "its solver needs a whole evaluation around it, as the agent react does, which cannot be carried over"
_NUMBERS = {"C": 1, "P": 0.5, "I": 0, "N": 0}  # inspect_ai's words for scores; any other word is no score


def text_of(message: Any) -> str:
    """The text of a message, or the error of a tool. Raises InfrastructureError for pictures and the like."""
    if getattr(message, "error", None):
        return f"Error: {message.error.message}"
    if not isinstance(message.content, str) and (others := {part.type for part in message.content} - {"text"}):
        raise InfrastructureError(f"a message holds {min(others)}, which cannot be carried over")
    text: str = message.text
    return text


class Play(ModelAPI):  # type: ignore[misc] # the package is not followed
    """The sample, and its model. `news` are the messages since the policy's last turn."""

    def __init__(self, task: Any, sample: Any, key: str) -> None:
        super().__init__(_NAME)
        set_registry_info(self, RegistryInfo(type="modelapi", name=_NAME))
        self._task, self._sample, self._key = task, sample, key
        self._context = contextvars.copy_context()
        self._known: list[Any] = []
        self.news: list[Any] = []
        self.tools: tuple[ToolSpec, ...] = ()
        self.problem, self.ended = "", False

    async def start(self) -> None:
        """Run the solver until it asks its model or ends."""
        self._turn = asyncio.Event()
        self._solver = asyncio.get_running_loop().create_task(self._solve(), context=self._context)
        await self._turn.wait()

    async def send(self, call: ToolCall) -> None:
        """Answer the solver, and run it until its next request or its end."""
        if not self.ended:
            self._turn.clear()
            self._reply.set_result(_output(call))
            await self._turn.wait()

    async def score(self, value: str) -> float | None:
        """End the solver; what the scorer says of the state, or of its entry `value`. None: no number from 0 to 1."""
        await self.end()
        scoring = self._scored(value)
        return None if self.problem else await asyncio.get_running_loop().create_task(scoring, context=self._context)

    async def end(self) -> None:
        """End the solver, if it still runs."""
        self._solver.cancel()
        await asyncio.wait([self._solver])

    async def generate(self, input: list[Any], tools: list[Any], **_: Any) -> ModelOutput:  # noqa: A002 - its name
        """The answer of the policy here. Raises InfrastructureError if it would have to play another part."""
        offered = (*map(_spec, tools), REPLY)
        seen, start = [(message.role, text_of(message)) for message in input], len(self._known)
        own = self._known and [role for role, _ in seen[start : start + 1]] != ["assistant"]
        if self.ended or own or seen[:start] != self._known or (self.tools and offered != self.tools):
            self.problem = "its model is asked another conversation or with other tools, which cannot be carried over"
            raise InfrastructureError(self.problem)
        self.news = input[start + 1 :] if start else input
        self._known, self.tools = seen, offered
        self._reply = asyncio.get_running_loop().create_future()
        self._turn.set()
        return await self._reply

    def max_connections(self) -> int:
        """As many as there are episodes: an answer may take as long as the policy needs."""
        return 1_000_000

    def connection_key(self) -> str:
        """One for each sample under way."""
        return f"{_NAME}/{id(self)}"

    async def _solve(self) -> None:
        state = self._state()
        model = Model(self, GenerateConfig())
        init_active_model(model, self._task.config)
        init_sample_model_data()
        init_transcript(Transcript())
        init_subtask_store(state.store)
        set_sample_state(state)

        async def generate(state: TaskState, tool_calls: Any = "loop", **config: Any) -> TaskState:
            cache = config.pop("cache", False)
            return await task_generate(model, state, tool_calls, cache, self._task.config.merge(config))

        try:
            with message_limit(self._task.message_limit), time_limit(self._task.time_limit):
                for solver in filter(None, (*_several(self._task.setup), *_several(self._task.solver))):
                    state = await solver(state, generate)
                    set_sample_state(state)
                    if state.completed:
                        break
        except LimitExceededError:
            pass  # what there is is scored, as inspect_ai does
        except Exception as error:  # noqa: BLE001 - a solver is a program of others
            whole = "active sample" in str(error)
            problem = _WHOLE if whole else f"sample {self._key}: {type(error).__name__}: {first_line(error)}"
            self.problem = self.problem or problem
        finally:
            self.ended = True
            self._turn.set()

    def _state(self) -> TaskState:
        return TaskState(
            model=ModelName(_NAME), sample_id=self._key, epoch=1, input=self._sample.input,
            messages=sample_messages(self._sample), target=Target(self._sample.target), choices=self._sample.choices,
            message_limit=self._task.message_limit, metadata=dict(self._sample.metadata or {}),
        )  # fmt: skip

    async def _scored(self, entry: str) -> float | None:
        try:
            score = await self._task.scorer[0](sample_state(), Target(self._sample.target))
            value = score.value
        except Exception as error:  # noqa: BLE001 - a scorer is a program of others
            self.problem = (
                self.problem or f"sample {self._key}: the scorer: {type(error).__name__}: {first_line(error)}"
            )
            return None
        if isinstance(value, dict) and entry not in value:
            self.problem = f"the scorer gives {', '.join(value)}: name one as env.options.value"
            return None
        value = value[entry] if isinstance(value, dict) else value
        number = _NUMBERS.get(value) if isinstance(value, str) else value
        return float(number) if isinstance(number, int | float) and 0 <= number <= 1 else None


def _several(solver: Any) -> list[Any]:
    return solver if isinstance(solver, list) else [solver]


def _spec(tool: Any) -> ToolSpec:
    schema = tool.parameters.model_dump(exclude_none=True, mode="json")
    return ToolSpec(name=tool.name, argument="", description=tool.description, parameters=schema)


def _output(call: ToolCall) -> ModelOutput:
    if call.name == REPLY.name:
        return ModelOutput.from_content(_NAME, call.argument)
    values, problem = call.values, None
    if not values and call.arguments.strip() not in {"", "{}"}:
        problem = "the arguments are no JSON object"
    made = InspectCall(id=call.id or "call", function=call.name, arguments=values, parse_error=problem)
    return ModelOutput.from_message(ChatMessageAssistant(content="", tool_calls=[made]), "tool_calls")
