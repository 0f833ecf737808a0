"""A server of vLLM's forms on the tiny model's real weights, with LoRA adapters read from disk while it runs.

It samples with the plain engine, so its log-probabilities are those of the weights. `restart()` forgets every adapter.
"""

from __future__ import annotations

import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from internalize.config.schema import load_config
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Generation, Sampling
from tests.faulty_server import Answer, FaultyServer
from tests.seams.plain_engine import PlainEngine
from tests.tiny import tiny_model, tiny_tokenizer


def refusal(status: int, message: str) -> Answer:
    return status, {}, json.dumps({"error": {"message": message, "code": status}}).encode()


class AdapterServer(FaultyServer):
    """Serves `base`: the tiny model, or one that was `loaded`, with its tokenizer.

    `resolver`: a folder in which an adapter is looked for by its name, instead of load requests.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        max_rank: int = 8,
        resolver: Path | None = None,
        base: str = "base",
        port: int = 0,
        loaded: tuple[Any, Any] | None = None,
    ) -> None:
        model, tokenizer = loaded or (tiny_model(seed), tiny_tokenizer())
        renderer = TemplateRenderer(tokenizer, TOOL_FORMATS["bracket"])
        self.engine, self.base = PlainEngine(model, renderer, load_config(None, [])), base
        self.max_rank, self.resolver = max_rank, resolver
        self.adapters: dict[str, Path] = {}
        self.loads: list[str] = []
        extra = {
            "POST /tokenize": lambda body: self._ok(
                {"tokens": tokenizer.encode(body["prompt"], add_special_tokens=False)}
            ),
            "POST /v1/completions": self._complete,
        }
        if resolver is None:
            extra |= {"POST /v1/load_lora_adapter": self._load, "POST /v1/unload_lora_adapter": self._unload}
        super().__init__(lambda m, s: '{"ok": true}' if s else "answer[1]", extra=extra, port=port)

    def restart(self) -> None:
        self.adapters.clear()

    @staticmethod
    def _ok(value: object) -> Answer:
        return 200, {}, json.dumps(value).encode()

    def _load(self, body: dict[str, Any]) -> Answer:
        name, path = body["lora_name"], Path(body["lora_path"])
        if not name:
            return refusal(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.adapters:
            return refusal(400, f"The lora adapter '{name}' has already been loaded.")
        if not (path / "adapter_config.json").exists():
            return refusal(404, f"Loading lora {name} failed: No adapter found for {path}")
        rank = json.loads((path / "adapter_config.json").read_text())["r"]
        if rank > self.max_rank:
            return refusal(500, f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}.")
        self.adapters[name] = path
        self.loads.append(name)
        return 200, {}, b"Success: LoRA adapter added successfully."

    def _unload(self, body: dict[str, Any]) -> Answer:
        if self.adapters.pop(body["lora_name"], None) is None:
            return refusal(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        return 200, {}, b"Success"

    def _resolved(self, name: str) -> None:
        """The resolver takes an adapter of this base only."""
        if self.resolver and name not in {self.base, *self.adapters} and (self.resolver / name).is_dir():
            config = json.loads((self.resolver / name / "adapter_config.json").read_text())
            if config["base_model_name_or_path"] == self.base and config["r"] <= self.max_rank:
                self.adapters[name] = self.resolver / name
                self.loads.append(name)

    def _complete(self, body: dict[str, Any]) -> Answer:
        from peft import PeftModel  # noqa: PLC0415 - slow to import

        name = body["model"]
        self._resolved(name)
        if name != self.base and name not in self.adapters:
            return refusal(404, f"The model `{name}` does not exist. Valid aliases: base.")
        model, plain = self.engine.model, self.engine.model
        if name != self.base:
            model = PeftModel.from_pretrained(plain, self.adapters[name]).eval()
        self.engine.model = model
        sampling = Sampling(max_tokens=body["max_tokens"], temperature=body.get("temperature", 1.0))
        turn = _result(
            self.engine.generate(body["prompt"], conversation="", seed=body.get("seed", 0), sampling=sampling)
        )
        self.engine.model = plain if name == self.base else model.unload()
        choice = {"token_ids": turn.token_ids, "logprobs": {"token_logprobs": turn.logprobs}, "finish_reason": "stop"}
        return self._json({"index": 0, "text": "", **choice}, prompt=len(body["prompt"]), sampled=len(turn.token_ids))


def _result(turn: Coroutine[Any, Any, Generation]) -> Generation:
    """What a coroutine that never waits returns; the server's own loop is running."""
    try:
        turn.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("the plain engine waits for nothing")
