"""engines/local.py: kept keys and values change nothing; company changes nothing; nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from internalize.errors import UserError
from internalize.inference.batching import sample
from internalize.inference.local import LocalEngine
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Generation, Message, Step
from tests.steps import turn
from tests.tiny import tiny_model, tiny_tokenizer

RENDERER = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
MODEL = tiny_model()


def engine(model: torch.nn.Module = MODEL, **settings: float) -> LocalEngine:
    return LocalEngine(model, RENDERER, **({"max_action_tokens": 6, "batch": 4} | settings))


def plain_logprobs(model: torch.nn.Module, prompt: Sequence[int], action: Sequence[int]) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *action]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(action)[:, None])[:, 0].tolist()


async def converse(
    served: LocalEngine, name: str, seed: int, *, turns: int = 3, length: int = 9
) -> list[tuple[tuple[int, ...], Generation]]:
    """An episode with a hint at every second step; returns the prompts and what came back."""
    prompt = (Message(role="system", content="one of search[x]" * 3), Message(role="user", content=name * length))
    past: list[Step] = []
    seen = []
    for number in range(turns):
        ids = RENDERER.context(prompt, past, f"hint {number}" if number % 2 else "").ids
        got = await served.generate(ids, conversation=name, seed=seed + number)
        seen.append((ids, got))
        past.append(turn(got.token_ids, got.finish, f"result {number} " * (1 + number)))
    served.release(name)
    return seen


def together(served: LocalEngine, names: str) -> list[list[tuple[tuple[int, ...], Generation]]]:
    async def run() -> list[list[tuple[tuple[int, ...], Generation]]]:
        return await asyncio.gather(*(converse(served, name, 10 * ord(name)) for name in names))

    return asyncio.run(asyncio.wait_for(run(), 30))


@pytest.mark.parametrize("batch", [2, 5, 16])
def test_logprobs_are_those_of_a_plain_forward_pass(batch: int) -> None:
    for conversation in together(engine(batch=batch), "abcdefg"):
        for ids, got in conversation:
            assert got.logprobs == pytest.approx(plain_logprobs(MODEL, ids, got.token_ids), abs=1e-5)


SHAPE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,
}


def test_other_architectures_work_too() -> None:
    torch.manual_seed(0)
    qwen = Qwen3ForCausalLM(Qwen3Config(**SHAPE)).eval()
    for ids, got in together(engine(qwen), "ab")[1]:
        assert got.logprobs == pytest.approx(plain_logprobs(qwen, ids, got.token_ids), abs=1e-5)


def test_attention_it_does_not_do_is_refused() -> None:
    mistral = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8)).eval()
    with pytest.raises(UserError, match="sliding_window"):
        together(engine(mistral), "a")
    assert mistral.config._attn_implementation == "sdpa"


def test_company_changes_no_sample() -> None:
    alone = [together(engine(), name)[0] for name in "abcdef"]
    for batch in (2, 6):
        company = together(engine(batch=batch), "abcdef")
        assert [[g.token_ids for _, g in c] for c in company] == [[g.token_ids for _, g in c] for c in alone]


def test_same_seed_same_bits() -> None:
    assert together(engine(), "abcd") == together(engine(), "abcd")


def test_a_prompt_longer_than_a_pass_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("internalize.inference.local._PASS_TOKENS", 16)
    for conversation in together(engine(), "abc"):
        for ids, got in conversation:
            assert got.logprobs == pytest.approx(plain_logprobs(MODEL, ids, got.token_ids), abs=1e-5)


def count_tokens(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counted: list[int] = []
    forward = model.forward

    def counting(**arguments: object) -> object:
        ids = arguments["input_ids"]
        assert isinstance(ids, torch.Tensor)
        counted.append(ids.numel())
        return forward(**arguments)

    monkeypatch.setattr(model, "forward", counting)
    return counted


def test_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = count_tokens(MODEL, monkeypatch)
    (first, second, third) = together(engine(), "a")[0]
    hint_and_generation_prompt = 30  # step 1 had a hint: it is cut away, and what followed it is read again
    assert sum(counted) <= len(third[0]) + len(third[1].token_ids) + hint_and_generation_prompt
    assert len(first[0]) + len(second[0]) > 2 * hint_and_generation_prompt


def test_a_shared_start_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = count_tokens(MODEL, monkeypatch)
    prompt = tuple(range(3, 203))

    async def run(served: LocalEngine) -> None:
        asked = (served.generate((*prompt, 300 + n), conversation=str(n), seed=n) for n in range(4))
        await asyncio.gather(*asked)
        served.release("0")
        await served.generate((*prompt, 310), conversation="later", seed=9)

    asyncio.run(run(engine(max_action_tokens=1, batch=4)))
    assert counted == [201, 3, 1]


def test_new_weights_need_a_reset() -> None:
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    model.train()
    served = engine(model)
    before = together(served, "ab")
    served.reset()
    with model.disable_adapter():
        without = together(served, "ab")
        ids, got = without[0][0]
        assert got.logprobs == pytest.approx(plain_logprobs(model.eval(), ids, got.token_ids), abs=1e-5)
        model.train()
    assert before != without
    assert model.training
    assert model.get_base_model().config._attn_implementation == "sdpa"


def test_greedy_stops_and_limits() -> None:
    async def run() -> tuple[Generation, Generation, Generation]:
        served = engine(temperature=0, max_context=20)
        return await asyncio.gather(
            served.generate(range(3, 10), conversation="a", seed=0),
            served.generate(range(3, 21), conversation="b", seed=0),
            served.generate(range(3, 23), conversation="c", seed=0),
        )

    free, tight, full = asyncio.run(run())
    assert free.token_ids[0] == int(MODEL(torch.tensor([list(range(3, 10))])).logits[0, -1].argmax())
    assert len(free.token_ids) == 6
    assert len(tight.token_ids) == 2
    assert full == Generation(token_ids=(), logprobs=(), text="", finish="length")


def test_an_end_of_turn_stops() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[2] *= 20  # the end of turn gets a logit far above or far below all others
    stopped = [got for episode in together(engine(model), "abc") for _, got in episode if got.finish == "stop"]
    assert stopped
    assert all(got.token_ids.index(2) == len(got.token_ids) - 1 for got in stopped)
    assert all("<|im_end|>" not in got.text for got in stopped)


def test_an_error_reaches_every_caller() -> None:
    async def run() -> list[Generation | BaseException]:
        served = engine()
        asked = [served.generate((9_999,), conversation=str(n), seed=n) for n in range(3)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert (await served.generate((5, 6), conversation="a", seed=0)).token_ids
        return answers

    assert all(isinstance(answer, IndexError) for answer in asyncio.run(run()))


def test_a_cancelled_caller_leaves_the_others_alone() -> None:
    async def run() -> Generation:
        served = engine()
        left = asyncio.create_task(served.generate((5, 6, 7), conversation="a", seed=0))
        kept = asyncio.create_task(served.generate((5, 6, 8), conversation="b", seed=1))
        await asyncio.sleep(0)
        left.cancel()
        return await kept

    assert asyncio.run(run()).token_ids


def test_samples_follow_the_distribution() -> None:
    logits = torch.randn(1, 700, generator=torch.Generator().manual_seed(0)) * 2
    draws = np.random.default_rng(0).random(4000)
    tokens, logprobs = sample(logits.expand(4000, -1), list(draws), 0.7)
    exact = torch.softmax(logits[0].double() / 0.7, -1)
    expected = torch.searchsorted(exact.cumsum(-1), torch.tensor(draws), right=True)
    assert sum(a != b for a, b in zip(tokens, expected.tolist(), strict=True)) <= 2
    assert logprobs == pytest.approx(logits[0].log_softmax(-1)[tokens].tolist(), abs=1e-5)


def test_the_edges_of_the_draw_stay_inside() -> None:
    logits = torch.full((2, 300), -1e9)
    logits[:, 7] = 0.0
    assert sample(logits, [0.0, 1.0 - 2**-53], 1.0)[0] == [7, 7]
