"""One iteration of the built-in default at three places that [compute] can name: are its records the same?

    INTERNALIZE_VLLM=FOLDER python -m benchmarks.places --out FOLDER    needs the extra `ray` and `make test-vllm`

`local` plays and trains in this process; `ray and vLLM` plays on two workers of Ray, for whom a real vLLM (CPU,
float32) samples; `FSDP2` trains on two processes with sharded weights over gloo. Actions are greedy, because a server
draws other samples from the same seed. Episodes are compared token by token with those of `local`, losses by their
largest difference, and checkpoints by the log-probabilities that plain PEFT computes with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic

import click
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from internalize import loop
from internalize.config.schema import Config, load_config
from internalize.environments.registry import Environments
from internalize.records import TrainSummary, Trajectory
from internalize.report.export import export_starter
from internalize.runs import names
from internalize.runs.store import read_jsonl
from internalize.stages.backends import local
from internalize.stages.run import Backends
from internalize.training.launched import LaunchedTraining
from internalize.training.policy import LocalPolicy
from tests.real_servers import free_port, vllm_server

SETTINGS = [
    "iterations=1", "env.name=docs", "rollout.attempts=1", "rollout.temperature=0", "rollout.require_success=false",
    "extract.min_support=1", "extract.max_p=1.0", "distill.filter=none", "distill.batch=2", "distill.lr=2e-4",
    "distill.held_out=0.0", "evaluate.drift=0", "evaluate.resamples=100", "evaluate.final_splits=[]", "compute.batch=4",
]  # fmt: skip
LOSSES = ("first_loss", "last_loss", "divergence_before", "divergence_after", "teacher_nll")
TEXT = "To find the answer, search the pages for the exact words of the question, then visit the first result."


@contextmanager
def at_home(_: Path) -> Iterator[list[str]]:
    yield []


@contextmanager
def on_ray_and_vllm(starter: Path) -> Iterator[list[str]]:
    import ray  # noqa: PLC0415 - an extra

    port = free_port()
    with vllm_server(starter, port, rank=16, context=2048) as url:
        endpoint = f'{{base_url="{url}", model="{starter}", concurrency=4, timeout=300, tries=4}}'
        yield ["compute.rollout=ray", "compute.replicas=2", "compute.endpoint=v", f"endpoints.v={endpoint}"]
        ray.shutdown()


@contextmanager
def on_sharded_weights(_: Path) -> Iterator[list[str]]:
    yield ["compute.train=accelerate", "compute.devices=2", 'distill.trainer={fsdp="full_shard auto_wrap"}']


PLACES = {"local": at_home, "ray and vLLM": on_ray_and_vllm, "FSDP2": on_sharded_weights}


def backends(config: Config, environments: Environments) -> Backends:
    """Those of the recipe; a launched training is told that CPUs may shard, which accelerate would otherwise ignore."""
    made = local(config, environments)
    if config.compute.train == "accelerate":
        policy = made.policies
        assert isinstance(policy, LocalPolicy)
        made = replace(made, trainer=LaunchedTraining(policy, "tests.sharded_on_cpu"))
    return made


def episodes(run: Path) -> dict[tuple[str, str], list[tuple[int, ...]]]:
    """The sampled tokens of every episode, by stage and task."""
    return {
        (f"{file.parent.name}/{file.name}", trajectory.task_id): [step.token_ids for step in trajectory.steps]
        for k in names.iterations(run, 1).values()
        for stage in [*names.learning(k, int(k.name[-1])), *names.measuring(k, int(k.name[-1]), ["dev"])]
        for file in [k / names.episodes(stage)]
        for trajectory in read_jsonl(file, Trajectory)
    }


def logits(run: Path, starter: Path) -> torch.Tensor:
    """What transformers and PEFT alone compute with a run's checkpoint."""
    base = AutoModelForCausalLM.from_pretrained(starter, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, run / names.iteration(1) / names.WEIGHTS).eval()
    ids = AutoTokenizer.from_pretrained(starter)(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        return model(ids).logits.log_softmax(-1)


def compare(run: Path, first: Path, starter: Path) -> str:
    played, wanted = episodes(run), episodes(first)
    assert played.keys() == wanted.keys()
    other = [key for key in wanted if played[key] != wanted[key]]
    one, two = (
        TrainSummary.model_validate_json((path / names.iteration(1) / names.TRAINING).read_bytes())
        for path in (run, first)
    )
    pairs = [(getattr(one, name), getattr(two, name)) for name in LOSSES]
    loss = max((abs(a - b) for a, b in pairs if a is not None and b is not None), default=float("nan"))
    peft = (logits(run, starter) - logits(first, starter)).abs().max().item()
    told = "".join(f"\n    other tokens: {file} {task}" for file, task in other)
    return (
        f"{len(wanted) - len(other)} of {len(wanted)} | {one.steps} steps, {one.accepted} examples | "
        f"{one.first_loss:.6f} {one.last_loss:.6f} | {loss:.1e} | {peft:.1e}{told}"
    )


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--tasks", default=8, show_default=True, help="Of each stage: rollouts, training, dev.")
@click.option("--place", "places", multiple=True, type=click.Choice([*PLACES]), default=[*PLACES])
@click.option("--set", "overrides", multiple=True, help="A key of the recipe, as KEY=VALUE.")
def main(out: Path, tasks: int, places: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    sizes = [f"{section}.tasks={tasks}" for section in ("rollout", "distill", "evaluate")]
    settings, starter = [*SETTINGS, *sizes, *overrides], out.resolve() / "starter"
    out.mkdir(parents=True, exist_ok=True)
    if not starter.exists():
        (out / "recipe.toml").write_text("", encoding="utf-8")
        export_starter(out / "recipe.toml", starter, settings)
    click.echo("place | same episodes | training | first and last loss | largest loss difference | in plain PEFT")
    for name in places:
        run, began = out / name.replace(" ", "-"), monotonic()
        with PLACES[name](starter) as more:
            loop.run(load_config(None, [*settings, *more]), run, resume=True, backends=backends)
        click.echo(f"{name} ({monotonic() - began:.0f} s) | {compare(run, out / 'local', starter)}")


if __name__ == "__main__":
    main()
