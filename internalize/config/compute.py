"""The section [compute]: where a run works. It changes neither episodes nor training, so the digest leaves it out.

A run may be resumed on another node, with another engine or batch: its episodes are the same up to float rounding. The
mark of each stage records the section that it ran with.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .regime import Section

MOVED = ("device", "batch")  # keys that were in [model] in older versions


class VllmConfig(Section):
    """The vLLM servers that a run starts for itself with compute.engine = 'vllm', in their own environment."""

    python: str = Field("", description="Python of the environment that holds vLLM; '' = the one of this package.")
    servers: int = Field(1, ge=1, le=64, description="Servers with the same weights; a conversation stays on one.")
    devices: int = Field(1, ge=1, le=64, description="GPUs of a server; on CPUs there are none.")
    options: tuple[str, ...] = Field((), description="Further arguments of `vllm serve`.")
    variables: dict[str, str] = Field(default_factory=dict, description="Further environment variables of the servers.")
    sleep: bool = Field(default=False, description="Whether they give back the memory of their GPUs during a training.")
    starts_within: float = Field(900.0, gt=0, le=86_400, description="Seconds that a server has to start.")


class ComputeConfig(Section):
    """Where a run works: its devices for episodes and training, and its engine."""

    rollout: Literal["local", "ray"] = Field("local", description="Who plays: this process, or workers of Ray.")
    engine: Literal["auto", "slots", "plain", "vllm", "endpoint"] = Field(
        "auto",
        description="What samples: 'slots' or 'plain' here, an 'endpoint', or 'vllm' that the run starts; 'auto' = the "
        "endpoint if one is named, else the first of those here that is exact.",
    )
    vllm: VllmConfig = Field(VllmConfig(), description="The servers that engine = 'vllm' starts.")
    replicas: int = Field(1, ge=1, le=1024, description="Workers of Ray, each with a copy of the policy.")
    gpus: float = Field(0.0, ge=0, le=64, description="GPUs of a worker of Ray; 0 = none.")
    endpoint: str = Field("", description="Endpoint that samples token ids with the policy's own weights; '' = none.")
    overlap: bool = Field(
        default=False,
        description="Whether the next rollouts begin beside the evaluation, where a server acts; dropped if the gate "
        "rejects.",
    )
    train: Literal["local", "accelerate"] = Field("local", description="Who trains: this process, or launched ones.")
    devices: int = Field(1, ge=1, le=1024, description="Processes of a launched training, a device each.")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'.")
    batch: int = Field(48, ge=1, le=4096, description="Conversations sampled together.")


def moved(data: dict[str, Any]) -> dict[str, Any]:
    """A recipe with its old keys of [model] moved to [compute]. Raises ValueError for a key in both sections.

    A `report_to` at the top, as transformers calls it, becomes `track.to`.
    """
    if "report_to" in data and "track" not in data:
        data = {key: value for key, value in data.items() if key != "report_to"} | {"track": {"to": data["report_to"]}}
    model, compute = data.get("model"), data.get("compute", {})
    if not isinstance(model, dict) or not isinstance(compute, dict):
        return data
    old = {key: value for key, value in model.items() if key in MOVED}
    for key in old.keys() & compute.keys():
        raise ValueError(f"model.{key} is now compute.{key}, and both are set")
    kept = {key: value for key, value in model.items() if key not in old}
    return data | {"model": kept, "compute": old | compute} if old else data
