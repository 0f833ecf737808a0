"""The section [model]: the policy at the start of a run, its types of weights, and its format of tool calls."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from .regime import Section


class ModelConfig(Section):
    """The policy at the start of the run."""

    source: str = Field(
        "builtin", description="'builtin', 'lab', 'lab-plain', 'lab-format', Hugging Face name, folder or .gguf file."
    )
    adapter: str = Field("", description="PEFT adapter merged into the source; '' = none ('builtin' brings its own).")
    protocol: Literal["auto", "renderers", "template", "bracket", "json"] = Field(
        "auto",
        description="How tools and calls are written: by the package renderers, by the model's chat template, or as "
        "text (search[x] or JSON calls); 'auto' takes the first that fits: renderers, template, bracket.",
    )
    template: dict[str, JsonValue] = Field(
        default_factory=dict, description="Arguments of the chat template, such as enable_thinking = false."
    )
    date: str = Field(
        "2026-01-01", pattern=r"^\d{4}-\d\d-\d\d$", description="Today's date for chat templates that write it."
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Type of the frozen weights.")
    quantize: Literal["none", "4bit"] = Field(
        "none", description="'4bit': linear layers in NF4 by the package bitsandbytes; needs distill.lora_r > 0."
    )
    max_context: int = Field(1536, ge=64, le=1_000_000, description="Longest prompt plus action, tokens.")
    endpoint: str = Field("", description="Endpoint that acts, with any weights or text only; '' = `source` acts.")

    def conflict(self, lora_r: int, train: str) -> str:
        """Why the weights cannot be quantized as `quantize` says; "" if they can."""
        setting = f"model.quantize = {self.quantize!r}"
        if self.quantize == "none":
            return ""
        if not lora_r:
            return f"{setting}: quantized weights cannot be trained; set distill.lora_r above 0"
        if self.adapter not in {"", "none"} or (self.source == "builtin" and self.adapter != "none"):
            return f"{setting}: no adapter is merged into quantized weights; export a merged model first"
        return f"{setting} excludes compute.train = {train!r}" if train != "local" else ""
