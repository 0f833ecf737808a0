"""Agents over an engine of token ids (`TokenAgent`) and over a chat endpoint that gives text only (`ChatAgent`).

Both turn the clean history and a hint into the next turn. The hint ends the last message and stays out of the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from internalize.config.schema import RolloutConfig
from internalize.errors import ContextError
from internalize.interfaces import ChatModel, Engine, Judge, Renderer, ToolFormat
from internalize.records import ActionRequest, ActionTurn, ChatRequest, Generation, Message, Reply, Sampling, ToolSpec

from .call_formats import check_all
from .token_estimate import estimated_tokens
from .tool_formats import TOOL_FORMATS, as_text, as_user, assistant


@dataclass(frozen=True)
class TokenAgent:
    """An engine of token ids with its renderer. `independent`: the engine is a server, which forms its own batches."""

    engine: Engine
    renderer: Renderer
    limits: RolloutConfig
    max_context: int
    wave: int
    judge: Judge | None = None
    independent: bool = False

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """The tool format's description of the tools; "" where the model's template has them."""
        return self.renderer.instructions(tools)

    async def act(self, request: ActionRequest) -> ActionTurn | None:
        """Sample a continuation of the rendered context."""
        ids = self.renderer.context(request.prompt, request.steps, request.hint, request.tools).ids
        if len(ids) + self.limits.max_turn_tokens > self.max_context:
            return None
        generation, forced = await self._sampled(ids, request)
        message, problem = self.renderer.parse(generation.token_ids, request.tools)
        return ActionTurn(message=message, problem=problem, forced=forced, **dict(generation))

    async def _sampled(self, ids: Sequence[int], request: ActionRequest) -> tuple[Generation, tuple[int, int]]:
        """A turn whose thought and action each have their own limit, and the range of ids that close the thought.

        A thought that reaches its limit is closed as the template closes thoughts, and the action follows.
        """
        action = min(self.limits.max_action_tokens, request.max_tokens or self.limits.max_action_tokens)
        thinking = self.limits.max_thinking_tokens
        first = await self._continued(ids, request, max(thinking, action), request.seed)
        if not thinking:
            return first, (0, 0)
        over = len(first.token_ids) - (first.finish == "stop") >= thinking
        forced = (0, 0)
        if over and (closing := self.renderer.closing(first.token_ids[:thinking])):
            put_in = Generation(token_ids=closing, logprobs=(0.0,) * len(closing), text="", finish="length")
            first, left = self._joined(self._cut(first, thinking), put_in), action
            forced = (thinking, len(first.token_ids))
        elif first.finish == "stop":
            return first, forced
        else:
            thought = self.renderer.thought_length(first.token_ids)
            left = thought + action - len(first.token_ids)
            if left <= 0:
                return self._cut(first, thought + action), forced
        rest = await self._continued((*ids, *first.token_ids), request, left, request.seed + 1)
        return self._joined(first, rest), forced

    def _cut(self, sampled: Generation, most: int) -> Generation:
        """The first `most` sampled ids."""
        kept = sampled.token_ids[:most]
        update = {"token_ids": kept, "logprobs": sampled.logprobs[:most], "text": self.renderer.decode(kept)}
        return sampled.model_copy(update=update)

    def _joined(self, first: Generation, rest: Generation) -> Generation:
        """Both parts as one, without log-probabilities if a part has none."""
        whole = first.token_ids + rest.token_ids
        known = all(len(part.logprobs) == len(part.token_ids) for part in (first, rest))
        logprobs = first.logprobs + rest.logprobs if known else ()
        return Generation(token_ids=whole, logprobs=logprobs, text=self.renderer.decode(whole), finish=rest.finish)

    async def _continued(self, ids: Sequence[int], request: ActionRequest, most: int, seed: int) -> Generation:
        sampling = Sampling(max_tokens=most, temperature=self.limits.temperature)
        return await self.engine.generate(ids, conversation=request.episode, seed=seed, sampling=sampling)

    def release(self, episode: str) -> None:
        """Drop the conversation's cache."""
        self.engine.release(episode)

    def reset(self) -> None:
        """Drop every prefix: a reused one changes the last bits of logprobs, so a resumed run would differ."""
        self.engine.reset()


@dataclass(frozen=True)
class ChatAgent:
    """A chat model as agent. Its turns have text and no token ids.

    Tools are described in the prompt and calls are text. If `native`, tools are passed to the server, and the server
    parses the calls.
    """

    chat: ChatModel
    tool_format: ToolFormat
    limits: RolloutConfig
    max_context: int
    wave: int
    judge: Judge | None = None
    independent: bool = True
    native: bool = False

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """The tool format's description of the tools; "" if tools are passed to the server."""
        return "" if self.native else self.tool_format.instructions(tools)

    async def act(self, request: ActionRequest) -> ActionTurn | None:
        """Request the next message; None if the context is full, by its estimated length or the server's answer."""
        messages = called_messages(request) if self.native else chat_messages(request, self.tool_format)
        tokens = sum(estimated_tokens(as_text(message, self.tool_format)) for message in messages)
        if tokens + self.limits.max_turn_tokens > self.max_context:
            return None
        try:
            reply = await self.chat.complete(
                ChatRequest(
                    messages=tuple(messages),
                    tools=tuple(request.tools) if self.native else (),
                    max_tokens=min(self.limits.max_turn_tokens, request.max_tokens or self.limits.max_turn_tokens),
                    temperature=self.limits.temperature,
                    seed=request.seed,
                )
            )
        except ContextError:
            return None
        return self._turn(reply, request.tools)

    def _turn(self, reply: Reply, tools: Sequence[ToolSpec]) -> ActionTurn:
        """The turn in a reply. Calls as text are parsed too, even if the tools were passed to the server."""
        if reply.tool_calls:
            found = check_all(reply.tool_calls, tools)
            message, problem = assistant(reply.text, "", *found.calls), found.problem
            text = as_text(message.model_copy(update={"tool_calls": reply.tool_calls}), TOOL_FORMATS["json"])
        else:
            form, text = TOOL_FORMATS["json"] if self.native else self.tool_format, reply.text
            message, problem = form.parse(text, tools), form.problem(text, tools)
        if reply.reasoning:
            message = message.model_copy(update={"reasoning": reply.reasoning})
        finish = "length" if reply.finish == "length" else "stop"  # a refusal is a complete turn
        return ActionTurn(text=text, message=message, problem=problem, finish=finish)

    def release(self, episode: str) -> None:
        """Do nothing: a chat endpoint keeps no state of an episode."""

    def reset(self) -> None:
        """Do nothing: a chat endpoint keeps no state of a wave."""


def chat_messages(request: ActionRequest, tool_format: ToolFormat) -> list[Message]:
    """The messages of a request, with the hint on a new line at the end of the last one, as the renderer places it."""
    messages = list(request.prompt)
    for step in request.steps:
        text = as_text(step.shown, tool_format) if step.shown else step.text
        messages += [Message(role="assistant", content=text), as_user(step.results)]
    return _hinted(messages, request.hint)


def called_messages(request: ActionRequest) -> list[Message]:
    """The messages for a server that is passed the tools: calls stay calls, each with its result.

    A turn without a valid call has no result of a call, so it is sent as text.
    """
    messages = list(request.prompt)
    for step in request.steps:
        turn = step.shown or step.message
        if not turn.tool_calls:
            turn = Message(role="assistant", content=turn.text or step.text)
        messages += [turn.model_copy(update={"reasoning": ""}), *step.results]
    return _hinted(messages, request.hint)


def _hinted(messages: list[Message], hint: str) -> list[Message]:
    """The messages as plain text, with the hint on a new line at the end of the last one."""
    texts = [message.text for message in messages]
    if hint:
        texts[-1] += f"\n{hint}"
    return [message.model_copy(update={"content": text}) for message, text in zip(messages, texts, strict=True)]
