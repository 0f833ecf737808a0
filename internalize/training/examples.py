"""Trajectories as training examples: the clean token ids, the spans of the actions, and the teacher's contexts.

Action ids are the sampled ids; only a step without ids (an imported log, a chat endpoint) is encoded from its text. A
step that is left out (`Step.left_out`) is context of later steps and has no span. If the chat template rewrites earlier
turns (cuts their thoughts, say), no single sequence holds a trajectory, and every step has its whole context.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from internalize.config.regime import Filter, Thoughts
from internalize.inference.renderer import common_prefix, with_system
from internalize.interfaces import Renderer
from internalize.records import ActionSpan, DistillExample, Injection, Message, Step, ToolSpec, Trajectory

FEWEST_TO_SPLIT = 20  # with fewer examples nothing is held out
FEWEST_HELD = 2


def conversations(trajectory: Trajectory) -> tuple[Trajectory, ...]:
    """The conversations of an episode that training uses. Each turn is learnt in one and context in the others."""
    return (trajectory, *trajectory.branches)


def weighted(
    trajectories: Iterable[Trajectory], keep: Filter, *, signed: bool = False
) -> list[tuple[Trajectory, float]]:
    """The conversations to train on, in their order, each with its episode's weight; unscored ones are left out.

    'success': score 1.0, weight 1. 'none': any score, weight 1. 'best_of_n': of each task the attempt with the
    highest score above 0, weight 1; of equals the one with the fewest action tokens, then the first. 'advantage':
    (score - mean) / standard deviation over the attempts of a task (arXiv 2402.03300), where that is above 0.
    Attempts below 0 are left out unless `signed`: a divergence has no upper bound, so that a negative weight would
    reward wrecking the distribution.
    """
    scored = [trajectory for trajectory in trajectories if trajectory.score is not None]
    attempts: dict[tuple[str, str, int], list[int]] = {}  # attempts at each task by the same policy
    for place, trajectory in enumerate(scored):
        attempts.setdefault((trajectory.task_id, trajectory.checkpoint, trajectory.iteration), []).append(place)
    weights = dict[int, float]()
    for places in attempts.values():
        weights |= zip(places, _WEIGHTS[keep]([scored[place] for place in places]), strict=True)
    kept = [
        (trajectory, weights[place])
        for place, trajectory in enumerate(scored)
        if weights[place] > 0 or (signed and weights[place])
    ]
    return [(part, weight) for trajectory, weight in kept for part in conversations(trajectory)]


def _advantages(attempts: Sequence[Trajectory]) -> list[float]:
    scores = [trajectory.score or 0.0 for trajectory in attempts]
    mean, spread = statistics.fmean(scores), statistics.pstdev(scores)
    return [(score - mean) / spread if spread else 0.0 for score in scores]


def _best(attempts: Sequence[Trajectory]) -> list[float]:
    best = min(attempts, key=lambda t: (-(t.score or 0.0), sum(len(step.token_ids) for step in t.steps)))
    return [float(trajectory is best and (trajectory.score or 0.0) > 0) for trajectory in attempts]


_WEIGHTS: dict[Filter, Callable[[Sequence[Trajectory]], list[float]]] = {
    "success": lambda attempts: [float(trajectory.score == 1.0) for trajectory in attempts],
    "none": lambda attempts: [1.0] * len(attempts),
    "advantage": _advantages,
    "best_of_n": _best,
}


def build_example(
    trajectory: Trajectory,
    renderer: Renderer,
    *,
    injections: Sequence[Injection | None] | None = None,
    global_injection: Injection | None = None,
    weight: float = 1.0,
    thoughts: Thoughts = "train",
) -> DistillExample | None:
    """The example of a trajectory, or None if it has no action to learn.

    `injections` (one a step) and `global_injection` are shown to the teacher. Without them the teacher sees what the
    policy saw; on-policy trajectories were rolled out without experience, so they need them.
    """
    if thoughts == "drop":
        trajectory = without_thoughts(trajectory, renderer)
    learnt = [number for number, step in enumerate(trajectory.steps, start=1) if not step.left_out]
    if not learnt:
        return None
    injections = [step.injection for step in trajectory.steps] if injections is None else injections
    steps = [
        step if step.token_ids else step.model_copy(update={"token_ids": _encoded(step, trajectory, renderer)})
        for step in trajectory.steps
    ]
    hints = [injection.text if injection else "" for _, injection in zip(steps, injections, strict=True)]
    steps, hints = steps[: learnt[-1]], hints[: learnt[-1]]
    shown = global_injection or trajectory.global_injection
    prompt, tools = trajectory.prompt, trajectory.tools
    contexts = [renderer.context(prompt, steps[:number], "", tools).ids for number in range(len(steps))]
    masked = [thought_ids(step, renderer) if thoughts == "mask" else 0 for step in steps]
    if not any(learnt_parts(step, length) for length, step in zip(masked, steps, strict=True) if not step.left_out):
        return None
    sides = _Sides(prompt, tools, shown.text if shown else "", steps, hints, contexts, masked)
    example = sides.in_one_sequence(renderer) if sides.is_append_only() else sides.with_all_contexts(renderer)
    return example.model_copy(update={"trajectory_id": trajectory.id, "weight": weight})


def thought_ids(step: Step, renderer: Renderer) -> int:
    """How many ids of a step are its thought; all of them if the thought was cut off."""
    length = renderer.thought_length(step.token_ids)
    return length if length or not step.message.reasoning else len(step.token_ids)


def learnt_parts(step: Step, masked: int) -> list[tuple[int, int]]:
    """The parts of an action that are learnt: the sampled ids after its first `masked` ids."""
    (start, end), length = step.forced, len(step.token_ids)
    parts = [(masked, start), (max(masked, end), length)]
    return [(first, last) for first, last in parts if first < last]


def without_thoughts(trajectory: Trajectory, renderer: Renderer) -> Trajectory:
    """The trajectory without thoughts; a turn that was only a thought is left out."""
    steps = []
    for step in trajectory.steps:
        rest = step.token_ids[thought_ids(step, renderer) :] if step.token_ids else ()
        while rest and len(rest) < len(step.token_ids) and renderer.decode(rest[:1]).isspace():
            rest = rest[1:]
        message = step.message.model_copy(update={"reasoning": ""})
        update = {"message": message, "token_ids": rest, "text": renderer.decode(rest) if rest else step.text}
        update |= {"forced": (0, 0)}
        empty = bool(step.token_ids) and not rest
        steps.append(step.model_copy(update=update | ({"left_out": "nothing but a thought"} if empty else {})))
    return trajectory.model_copy(update={"steps": tuple(steps)})


def _encoded(step: Step, trajectory: Trajectory, renderer: Renderer) -> tuple[int, ...]:
    """The ids of a step that has none: as the model's template writes the turn, or its text as it is."""
    return renderer.encode_turn(step.message, trajectory.tools) if trajectory.tools else renderer.encode_text(step.text)


@dataclass(frozen=True)
class _Sides:
    """The contexts of a trajectory: the student's (clean), and the experience that only the teacher sees."""

    prompt: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    global_text: str  # experience in the system message, "" = none
    steps: Sequence[Step]
    hints: Sequence[str]  # experience at each step, "" = none
    contexts: Sequence[tuple[int, ...]]
    masked: Sequence[int]  # leading ids of each action that are only context

    def is_append_only(self) -> bool:
        """Whether each context starts with the one before it and the action sampled there."""
        seen = [context + step.token_ids for context, step in zip(self.contexts, self.steps, strict=True)]
        return all(later[: len(ids)] == ids for ids, later in zip(seen, self.contexts[1:], strict=False))

    def in_one_sequence(self, renderer: Renderer) -> DistillExample:
        """The clean trajectory, a branch for each hint, and the teacher's prompt if experience is global."""
        spans = []
        for number, (clean, step, hint) in enumerate(zip(self.contexts, self.steps, self.hints, strict=True)):
            if step.left_out:
                continue
            hinted = renderer.context(self.prompt, self.steps[:number], hint, self.tools)
            branch = hinted.ids[hinted.fork :]
            fork = hinted.fork if branch else 0
            for first, last in learnt_parts(step, self.masked[number]):
                start, end, before = len(clean) + first, len(clean) + last, step.token_ids[:first]
                spans.append(ActionSpan(start=start, end=end, fork=fork, branch=branch + before if branch else ()))
        prompt = with_system(self.prompt, self.global_text)
        return DistillExample(
            trajectory_id="",
            token_ids=self.contexts[-1] + self.steps[-1].token_ids,
            spans=tuple(spans),
            prompt_length=len(self.contexts[0]),
            teacher_prompt=renderer.context(prompt, (), "", self.tools).ids if self.global_text else (),
        )

    def with_all_contexts(self, renderer: Renderer) -> DistillExample:
        """Every step's clean context and action in a row; all experience is in the branches."""
        prompt = with_system(self.prompt, self.global_text) if self.global_text else self.prompt
        ids: tuple[int, ...] = ()
        spans = []
        for number, (clean, step, hint) in enumerate(zip(self.contexts, self.steps, self.hints, strict=True)):
            parts = learnt_parts(step, self.masked[number])
            if step.left_out or not parts:
                continue
            origin, action = len(ids), len(ids) + len(clean)
            ids += clean + step.token_ids
            hinted = renderer.context(prompt, self.steps[:number], hint, self.tools).ids
            same = common_prefix(clean, hinted)
            for first, last in parts:
                branch: tuple[int, ...] = () if hinted == clean else hinted[same:] + step.token_ids[:first]
                fork = origin + same if branch else 0
                spans.append(
                    ActionSpan(start=action + first, end=action + last, fork=fork, branch=branch, origin=origin)
                )
        return DistillExample(trajectory_id="", token_ids=ids, spans=tuple(spans), prompt_length=spans[0].start)


def draw_held_out(count: int, share: float, seed: int) -> frozenset[int]:
    """The share of `count` places, at least `FEWEST_HELD` of them; none for a share of 0."""
    return frozenset(random.Random(seed).sample(range(count), max(FEWEST_HELD, round(share * count)) if share else 0))
