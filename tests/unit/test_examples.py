"""Trajectories become clean ids, action spans and the teacher's branches."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from internalize.config.distill import DistillConfig
from internalize.inference.renderer import TemplateRenderer, with_system
from internalize.inference.tool_formats import BracketFormat
from internalize.records import DistillExample, Injection, Message, Trajectory
from internalize.training.adapter import new_adapter
from internalize.training.distill import distill
from internalize.training.examples import build_example, weighted
from internalize.training.scoring import pack, pack_clean
from tests.steps import step
from tests.tiny import STRIPS_THINKING, tiny_tokenizer

PROMPT = (Message(role="system", content="Reply with one action."), Message(role="user", content="mode of io.open?"))
HINT = Injection(item_ids=("a",), text="Experience: visit before you answer.", served_by="lexical")


def _trajectory(renderer: TemplateRenderer, **change: object) -> Trajectory:
    texts = ["search[io open]", "visit[io.open]", "answer[r]"]
    observations = ["1 result: io.open", "io.open(file, mode='r')", None]
    hints = [HINT, None, HINT]
    steps = tuple(
        step(text, seen=seen, injection=hint, token_ids=renderer.encode_text(text))
        for text, seen, hint in zip(texts, observations, hints, strict=True)
    )
    trajectory = Trajectory(
        id="t", task_id="q", env="docs", split="train", iteration=0, seed=0, checkpoint="c", prompt=PROMPT,
        steps=steps, termination="answered", score=1.0, pattern="stepwise",
    )  # fmt: skip
    return trajectory.model_copy(update=change)


@pytest.fixture
def renderer(tokenizer: PreTrainedTokenizerFast) -> TemplateRenderer:
    return TemplateRenderer(tokenizer, BracketFormat())


def test_clean_ids_hold_the_actions_and_no_experience(renderer: TemplateRenderer) -> None:
    trajectory = _trajectory(renderer)
    example = build_example(trajectory, renderer)
    text = renderer.tokenizer.decode(list(example.token_ids))
    assert "Experience" not in text
    assert "1 result: io.open" in text
    for span, played in zip(example.spans, trajectory.steps, strict=True):
        assert example.token_ids[span.start : span.end] == played.token_ids
        assert example.token_ids[span.end - 1] in renderer.stop_ids  # invariant 4
    assert example.spans[-1].end == len(example.token_ids)
    assert example.token_ids[: example.prompt_length] == renderer.context(PROMPT, ()).ids


def test_the_teacher_sees_exactly_what_the_policy_saw(renderer: TemplateRenderer) -> None:
    trajectory = _trajectory(renderer)
    example = build_example(trajectory, renderer)
    turns = list(trajectory.steps)
    for number, (span, played) in enumerate(zip(example.spans, trajectory.steps, strict=True)):
        seen = renderer.context(PROMPT, turns[:number], played.injection.text if played.injection else "").ids
        clean = span.start if not span.branch else span.fork
        assert example.token_ids[:clean] + span.branch == seen
        assert bool(span.branch) == (played.injection is not None)


def test_global_experience_stands_in_the_system_message(renderer: TemplateRenderer) -> None:
    trajectory = _trajectory(renderer, global_injection=HINT)
    example = build_example(trajectory, renderer, injections=[None] * 3)
    text = renderer.tokenizer.decode(list(example.teacher_prompt))
    assert text.index("Experience") < text.index("mode of io.open?")
    teacher = pack(example)
    assert teacher.plain
    assert tuple(teacher.ids.tolist()) == (example.teacher_prompt + example.token_ids[example.prompt_length :])[:-1]


def test_annotations_replace_what_the_rollout_saw(renderer: TemplateRenderer) -> None:
    plain = _trajectory(renderer)
    plain = plain.model_copy(
        update={"steps": tuple(step.model_copy(update={"injection": None}) for step in plain.steps)}
    )
    bare = build_example(plain, renderer)
    assert not any(span.branch for span in bare.spans)
    hinted = build_example(plain, renderer, injections=[None, HINT, None])
    assert [bool(span.branch) for span in hinted.spans] == [False, True, False]
    assert hinted.token_ids == bare.token_ids
    whole = build_example(plain, renderer, global_injection=HINT, weight=0.5)
    assert whole.teacher_prompt
    assert whole.weight == 0.5
    with pytest.raises(ValueError, match="shorter"):
        build_example(plain, renderer, injections=[HINT])


@pytest.mark.parametrize("whole", [None, HINT])
def test_a_template_that_strips_thinking_gives_every_step_its_context(whole: Injection | None) -> None:
    renderer = TemplateRenderer(tiny_tokenizer(STRIPS_THINKING), BracketFormat())
    plain = _trajectory(renderer, global_injection=whole)
    assert not build_example(plain, renderer).rewritten
    steps = tuple(
        step.model_copy(update={"token_ids": renderer.encode_text(f"hm</think>{step.text}")}) for step in plain.steps
    )
    example = build_example(plain.model_copy(update={"steps": steps}), renderer)
    assert example.rewritten
    assert not example.teacher_prompt
    turns = list(steps)
    shown = with_system(PROMPT, whole.text) if whole else PROMPT
    for number, (span, played) in enumerate(zip(example.spans, steps, strict=True)):
        clean = renderer.context(PROMPT, turns[:number]).ids
        taught = renderer.context(shown, turns[:number], played.injection.text if played.injection else "").ids
        assert example.token_ids[span.origin : span.start] == clean
        assert example.token_ids[span.start : span.end] == played.token_ids
        assert bool(span.branch) == (taught != clean)
        if span.branch:
            assert example.token_ids[span.origin : span.fork] + span.branch == taught
    packed = pack_clean(example.token_ids, example.spans)
    assert packed.targets.tolist() == [token for step in steps for token in step.token_ids]
    assert len(packed.ids) < len(example.token_ids) / 1.5  # what the contexts share runs once


def test_no_actions_no_example(renderer: TemplateRenderer) -> None:
    assert build_example(_trajectory(renderer, steps=()), renderer) is None


def test_steps_without_sampled_ids_are_encoded_from_their_text(renderer: TemplateRenderer) -> None:
    """An imported log; a step that was sampled keeps its ids, though its text would be encoded otherwise."""
    sampled = _trajectory(renderer)
    odd = (*[renderer.encode_text(letter)[0] for letter in "search[io open]"], sampled.steps[0].token_ids[-1])
    assert odd != sampled.steps[0].token_ids
    mixed = [sampled.steps[0].model_copy(update={"token_ids": odd})]
    mixed += [step.model_copy(update={"token_ids": ()}) for step in sampled.steps[1:]]
    example = build_example(sampled.model_copy(update={"steps": tuple(mixed)}), renderer)
    actions = [example.token_ids[span.start : span.end] for span in example.spans]
    assert actions == [odd, *[step.token_ids for step in sampled.steps[1:]]]
    bare = [step.model_copy(update={"token_ids": ()}) for step in sampled.steps]
    assert build_example(sampled.model_copy(update={"steps": tuple(bare)}), renderer) == build_example(
        sampled, renderer
    )


def test_a_filter_keeps_successes_or_everything_scored(renderer: TemplateRenderer) -> None:
    scores = [1.0, 0.0, None, 0.5]
    trajectories = [_trajectory(renderer, score=score) for score in scores]
    assert [kept.score for kept, _ in weighted(trajectories, "success")] == [1.0]
    assert [kept.score for kept, _ in weighted(trajectories, "none")] == [1.0, 0.0, 0.5]


def test_a_rendered_trajectory_trains(renderer: TemplateRenderer, model: LlamaForCausalLM, tmp_path: Path) -> None:
    example = build_example(_trajectory(renderer), renderer)
    packed = pack_clean(example.token_ids, example.spans)
    assert packed.targets.tolist() == [token for step in _trajectory(renderer).steps for token in step.token_ids]
    config = DistillConfig(divergence="sft", epochs=8, lr=1e-2, lora_r=8)
    summary = distill(new_adapter(model, 8, 0), [example], config, seed=0, output_dir=tmp_path)
    assert summary.divergence_after < summary.divergence_before - 1


def _attempts(renderer: TemplateRenderer, scores: list[float | None], task: str = "q") -> list[Trajectory]:
    return [_trajectory(renderer, id=f"{task}{i}", task_id=task, score=score) for i, score in enumerate(scores)]


def test_advantages_are_relative_to_the_attempts_of_the_task(renderer: TemplateRenderer) -> None:
    """Scores 1, 0, 0, 0: mean 1/4, deviation sqrt(3)/4, so the success weighs (3/4) / (sqrt(3)/4) = sqrt(3)."""
    rare = _attempts(renderer, [1.0, 0.0, 0.0, None, 0.0])
    even = _attempts(renderer, [0.0, 1.0], "r")  # mean 1/2, deviation 1/2
    known = _attempts(renderer, [1.0, 1.0], "s")  # nothing to tell them apart
    found = weighted([*rare, *even, *known], "advantage")
    assert [(t.id, weight) for t, weight in found] == [("q0", pytest.approx(3**0.5)), ("r1", pytest.approx(1.0))]
    signed = weighted([*rare, *even, *known], "advantage", signed=True)  # failures: (-1/4) / (sqrt(3)/4)
    low = pytest.approx(-(3**-0.5))
    assert [t.id for t, _ in signed] == ["q0", "q1", "q2", "q4", "r0", "r1"]
    assert [weight for _, weight in signed] == [
        pytest.approx(3**0.5),
        low,
        low,
        low,
        pytest.approx(-1),
        pytest.approx(1),
    ]


def test_attempts_of_another_iteration_are_another_group(renderer: TemplateRenderer) -> None:
    first, second = _attempts(renderer, [1.0, 0.0])
    assert weighted([first, second.model_copy(update={"iteration": 2})], "advantage") == []


def test_best_of_n_is_the_best_then_the_shortest_then_the_first(renderer: TemplateRenderer) -> None:
    low, high, short, none = _attempts(renderer, [0.5, 1.0, 1.0, None])
    short = short.model_copy(update={"steps": short.steps[1:]})
    failed = _attempts(renderer, [0.0, 0.0], "r")
    equal = _attempts(renderer, [0.3, 0.3], "s")
    found = weighted([low, high, short, none, *failed, *equal], "best_of_n")
    assert [(t.id, weight) for t, weight in found] == [("q2", 1.0), ("s0", 1.0)]


@pytest.mark.parametrize("strips", [False, True])
def test_a_step_that_is_left_out_is_context_without_a_loss(strips: bool) -> None:  # noqa: FBT001
    """The others keep their contexts, the sequence ends with the last that is learnt, and alone it is no example."""
    renderer = TemplateRenderer(tiny_tokenizer(STRIPS_THINKING) if strips else tiny_tokenizer(), BracketFormat())
    texts = ["hm</think>search[io open]", "visit[io.open]", "visit[io.open#2]", "answer[r]"]
    steps = [step(text, seen="x", injection=HINT, token_ids=renderer.encode_text(text)) for text in texts]
    marked = [one.model_copy(update={"left_out": "weight 0"}) if n in {0, 3} else one for n, one in enumerate(steps)]
    whole = build_example(_trajectory(renderer, steps=tuple(steps)), renderer, global_injection=HINT)
    part = build_example(_trajectory(renderer, steps=tuple(marked)), renderer, global_injection=HINT)

    def learnt(example: DistillExample) -> list[tuple[tuple[int, ...], ...]]:
        def ids(start: int, end: int) -> tuple[int, ...]:
            return example.token_ids[start:end]

        return [(ids(s.origin, s.start), ids(s.start, s.end), ids(s.origin, s.fork) + s.branch) for s in example.spans]

    assert learnt(part) == learnt(whole)[1:3]
    assert part.teacher_prompt == whole.teacher_prompt
    assert part.token_ids[: part.prompt_length] == whole.token_ids[: whole.prompt_length] or strips
    assert part.spans[-1].end == len(part.token_ids)
    assert build_example(_trajectory(renderer, steps=(marked[0], marked[3])), renderer) is None
