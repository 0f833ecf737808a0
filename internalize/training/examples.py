"""Trajectories to training examples: clean ids, where the actions lie, what the teacher sees instead.

Where the template rewrites earlier turns (cuts their thinking, say) no single sequence holds a trajectory: then every
step brings its whole context. Left out: cutting to a length (rollouts are bounded already).
What must not change: action ids are the sampled ones, and only a step that has none (an
imported log, a chat endpoint) is encoded from its text; the clean side holds no experience; a trajectory
without a score is never trained on.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from internalize.inference.renderer import Renderer, common_prefix
from internalize.records import ActionSpan, DistillExample, Injection, Message, Step, Trajectory

Keep = Literal["success", "none", "advantage", "best_of_n"]


def select(trajectories: Iterable[Trajectory], keep: Keep) -> list[Trajectory]:
    """The trajectories to train on: those with a weight above 0."""
    return [trajectory for trajectory, _ in weighted(trajectories, keep)]


def weighted(trajectories: Iterable[Trajectory], keep: Keep) -> list[tuple[Trajectory, float]]:
    """The trajectories to train on, in their order, each with its weight; unscored ones never.

    'success': score 1.0, weight 1. 'none': any score, weight 1. 'best_of_n': of each task the attempt with the
    highest score above 0, weight 1; of equals the one with the fewest action tokens, then the first. 'advantage':
    (score - mean) / standard deviation over the attempts of a task (arXiv 2402.03300), where that is above 0.
    Below 0 it is left out and not trained away from: a divergence has no bound upwards and -log q none downwards,
    so that a negative weight would reward wrecking the distribution.
    """
    scored = [trajectory for trajectory in trajectories if trajectory.score is not None]
    weights = _WEIGHTS[keep](scored)
    return [(trajectory, weight) for trajectory, weight in zip(scored, weights, strict=True) if weight > 0]


def _successes(scored: Sequence[Trajectory]) -> list[float]:
    return [float(trajectory.score == 1.0) for trajectory in scored]


def _everything(scored: Sequence[Trajectory]) -> list[float]:
    return [1.0] * len(scored)


def _advantages(scored: Sequence[Trajectory]) -> list[float]:
    weights = [0.0] * len(scored)
    for places in _attempts(scored):
        scores = [scored[place].score or 0.0 for place in places]
        mean, spread = statistics.fmean(scores), statistics.pstdev(scores)
        for place, score in zip(places, scores, strict=True):
            weights[place] = max(0.0, (score - mean) / spread) if spread else 0.0
    return weights


def _best(scored: Sequence[Trajectory]) -> list[float]:
    weights = [0.0] * len(scored)
    for places in _attempts(scored):
        best = min(places, key=lambda place: (-(scored[place].score or 0.0), _action_tokens(scored[place])))
        weights[best] = float((scored[best].score or 0.0) > 0)
    return weights


def _attempts(scored: Sequence[Trajectory]) -> list[list[int]]:
    """Places of the attempts of each task by the same policy."""
    groups: dict[tuple[str, str, int], list[int]] = {}
    for place, trajectory in enumerate(scored):
        groups.setdefault((trajectory.task_id, trajectory.checkpoint, trajectory.iteration), []).append(place)
    return list(groups.values())


def _action_tokens(trajectory: Trajectory) -> int:
    return sum(len(step.token_ids) for step in trajectory.steps)


_WEIGHTS: dict[str, Callable[[Sequence[Trajectory]], list[float]]] = {
    "success": _successes,
    "none": _everything,
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
) -> DistillExample | None:
    """The example of a trajectory, or None if it has no action.

    `injections` (one a step) and `global_injection` are what the teacher sees. Without them it sees
    what the policy saw; on-policy trajectories were rolled out without experience and need them.
    """
    shown = [step.injection for step in trajectory.steps] if injections is None else injections
    steps = [_with_ids(step, renderer) for step in trajectory.steps]
    hints = [injection.text if injection else "" for _, injection in zip(steps, shown, strict=True)]
    whole = global_injection or trajectory.global_injection
    contexts = [renderer.context(trajectory.prompt, steps[:number]).ids for number in range(len(steps))]
    if not contexts:
        return None
    views = _Views(trajectory.prompt, whole.text if whole else "", steps, hints, contexts)
    one = views.in_one(renderer) if _are_prefixes(contexts, steps) else views.per_step(renderer)
    return one.model_copy(update={"trajectory_id": trajectory.id, "weight": weight})


@dataclass(frozen=True)
class _Views:
    """Both sides of a trajectory: the clean contexts, and what the teacher is shown besides."""

    prompt: tuple[Message, ...]
    whole: str  # global experience, "" = none
    steps: Sequence[Step]
    hints: Sequence[str]  # one a step, "" = none
    contexts: Sequence[tuple[int, ...]]

    def in_one(self, renderer: Renderer) -> DistillExample:
        """The clean trajectory in one sequence, and what differs for the teacher."""
        spans = []
        for number, (clean, step, hint) in enumerate(zip(self.contexts, self.steps, self.hints, strict=True)):
            hinted = renderer.context(self.prompt, self.steps[:number], hint)
            branch = hinted.ids[hinted.fork :]
            fork = hinted.fork if branch else 0
            spans.append(ActionSpan(start=len(clean), end=len(clean + step.token_ids), fork=fork, branch=branch))
        prompt = Renderer.with_system(self.prompt, self.whole)
        return DistillExample(
            trajectory_id="",
            token_ids=self.contexts[-1] + self.steps[-1].token_ids,
            spans=tuple(spans),
            prompt_length=spans[0].start,
            teacher_prompt=renderer.context(prompt, ()).ids if self.whole else (),
        )

    def per_step(self, renderer: Renderer) -> DistillExample:
        """Every step's clean context and action one after the other; all experience lies in the branches."""
        prompt = Renderer.with_system(self.prompt, self.whole) if self.whole else self.prompt
        ids: tuple[int, ...] = ()
        spans = []
        for number, (clean, step, hint) in enumerate(zip(self.contexts, self.steps, self.hints, strict=True)):
            origin, start = len(ids), len(ids) + len(clean)
            ids += clean + step.token_ids
            shown = renderer.context(prompt, self.steps[:number], hint).ids
            same = common_prefix(clean, shown)
            branch: tuple[int, ...] = () if shown == clean else shown[same:]
            fork = origin + same if branch else 0
            spans.append(ActionSpan(start=start, end=len(ids), fork=fork, branch=branch, origin=origin))
        return DistillExample(trajectory_id="", token_ids=ids, spans=tuple(spans), prompt_length=spans[0].start)


def _are_prefixes(contexts: Sequence[tuple[int, ...]], steps: Sequence[Step]) -> bool:
    """Whether each context starts with the one before it and the action sampled there."""
    seen = [context + step.token_ids for context, step in zip(contexts, steps, strict=True)]
    return all(later[: len(ids)] == ids for ids, later in zip(seen, contexts[1:], strict=False))


def _with_ids(step: Step, renderer: Renderer) -> Step:
    """The step with token ids; only a turn that was never sampled here is encoded from its text."""
    return step if step.token_ids else step.model_copy(update={"token_ids": renderer.encode_text(step.text)})
