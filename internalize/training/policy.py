"""The model of this process, sampled and trained in place: the first `Policy`, `PolicyLoader` and `TrainBackend`.

With an endpoint that acts, a server samples with the weights that it has loaded; training stays here. After every
change of weights the engine drops its cache, and `checkpoint` is the record of the current weights.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel, set_peft_model_state_dict

from internalize.config.schema import Config
from internalize.config.specs import TrainSpec
from internalize.errors import UserError
from internalize.experience.redact import Redactor
from internalize.inference.agent import TokenAgent
from internalize.inference.endpoints import Endpoints
from internalize.inference.loading import load_policy, resolve_device, servable
from internalize.inference.policy_chat import PolicyChat
from internalize.inference.rendering import renderer_of, stop_ids
from internalize.inference.self_check import in_one_sentence, ordinary_ids
from internalize.inference.server_policy import ServerPolicy
from internalize.inference.vllm_servers import NAME, VllmServers
from internalize.interfaces import Agent, ChatModel, Scorer
from internalize.judge import build as build_judge
from internalize.records import Checkpoint, DistillExample, Drift, SelfCheck, TrainSummary, Trajectory
from internalize.runs import names
from internalize.runs.store import read_jsonl

from .adapter import new_adapter
from .arguments import require_arguments
from .checkpoint import checkpoint_id, load_checkpoint, save_checkpoint, trained_state
from .distill import distill
from .drift import drift
from .selection import SCORERS, EngineMaker, engines_of, select_paths
from .teachers import References
from .weights import State, snapshot, trained

_LOG = logging.getLogger(__name__)
_EFFECT = 0.5  # nats: far above differences by rounding and precision
_LOGS = "runs"  # folder of transformers' logging back-ends, in that of a training

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def plain_logprobs(model: PreTrainedModel, ids: Sequence[int], start: int) -> list[float]:
    """Log-probabilities of `ids[start:]` by a plain forward pass."""
    logits_TV = model(input_ids=torch.tensor([list(ids)], device=model.device)).logits[0]
    rows_TV = logits_TV[start - 1 : -1].float().log_softmax(-1)
    taken_T = torch.tensor(list(ids[start:]), device=rows_TV.device)
    found: list[float] = rows_TV.gather(-1, taken_T[:, None])[:, 0].tolist()
    return found


class LocalPolicy:
    """A model with a LoRA adapter (or all weights) to train; `lora_r` 0 trains all weights.

    `engine` makes the engine that samples; `scorer` scores given actions. None = the fastest that `check` finds right;
    before `check` those for ordinary attention.
    """

    def __init__(
        self,
        config: Config,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        engine: EngineMaker | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        named = config.model
        self.config = config
        self._engines = {engine.__name__: engine} if engine else engines_of(config.compute.engine)
        self._scorers = {type(scorer).__name__: scorer} if scorer else SCORERS
        self.scorer = next(iter(self._scorers.values()))
        self.model, rank = model, config.distill.lora_r
        if rank:
            with in_one_sentence(model, "LoRA"):
                self.model = new_adapter(model, rank, config.seed, experts=config.distill.lora_experts)
        self.model.eval()
        self.renderer = renderer_of(tokenizer, named.protocol, named.template, named.date, stop_ids(model))
        if config.distill.thoughts == "drop" and self.renderer.opens_thought:
            raise UserError("distill.thoughts = 'drop': the generation prompt begins a thought; turn thinking off")
        self.engine = next(iter(self._engines.values()))(self.model, self.renderer, config)
        self._starter = {name: tensor.clone() for name, tensor in trained_state(self.model).items()}
        self.starter = Checkpoint(
            id=checkpoint_id(self._starter),
            parent=None,
            iteration=0,
            pool_version=None,
            config_digest=config.digest,
            path="",
        )
        self.checkpoint = self.starter
        self.endpoints = Endpoints(config)
        self.servers: VllmServers | None = None
        self._server: ServerPolicy | None = None
        self._judge = build_judge(config.judge, self.chat, Redactor.of(config.redact).clean)
        self.self_check: SelfCheck | None = None  # result of `check`
        self.anchor = snapshot(self.model) if config.distill.kl_anchor or config.evaluate.drift else None

    @classmethod
    def of(
        cls, config: Config, *, check: bool = True, engine: EngineMaker | None = None, scorer: Scorer | None = None
    ) -> LocalPolicy:
        """The policy that the recipe's [model] section names. Not to `check`: one neither sampled nor trained.

        Raises UserError if there is no such model, if it fails its self-check, or if an endpoint in use has no key or
        cannot be asked.
        """
        Endpoints(config).check()  # before loading the model, which is slow
        require_arguments(config.distill, resolve_device(config.compute.device))
        policy = cls(config, *_loaded(config), engine, scorer)
        if check:
            policy.check()
        return policy

    def check(self) -> SelfCheck:
        """Choose engine and scorer by comparing them with plain forward passes of the model.

        Raises UserError with the difference if none agrees.
        """
        ids = ordinary_ids(self.model, self.renderer.tokenizer)
        found = select_paths(self.model, self.renderer, self.config, ids, self._engines, self._scorers)
        found = found.model_copy(update={"calls": self.renderer.way})
        self.engine = self._engines[found.engine](self.model, self.renderer, self.config)
        self.scorer, self.self_check = self._scorers[found.scorer], found
        return found

    async def load(self, checkpoint: Checkpoint, root: Path) -> LocalPolicy:
        """Load the weights of a checkpoint in place, here and on the server that acts."""
        if checkpoint.id != self.checkpoint.id:
            self.restore(checkpoint.folder(root), checkpoint.id)
        self.checkpoint = checkpoint
        config = await self.served(root)
        if config.acting_endpoint and self._server is None:
            given = (self.endpoints.client(config.acting_endpoint), config, self.renderer, self.starter.id)
            self._server = await ServerPolicy.connect(*given, own=self, root=root)
        if self._server:
            await self._server.hold(checkpoint.id, checkpoint.folder(root))
        return self

    async def served(self, root: Path) -> Config:
        """The recipe with the address of the server that acts. The run's own servers start, in `root`, at first use.

        Raises UserError if they cannot be started.
        """
        config = self.config
        if config.compute.engine == "vllm":
            folder, named = root / names.VLLM, config.model
            folder.mkdir(parents=True, exist_ok=True)
            model = servable(named.source, named.adapter, named.dtype, folder / "model")
            cpu = resolve_device(config.compute.device).type == "cpu"
            self.servers = VllmServers(config, model, folder.resolve(), cpu=cpu)
            compute = config.compute.model_copy(update={"engine": "endpoint", "endpoint": NAME})
            known = {**config.endpoints, NAME: self.servers.endpoint}
            self.config = config.model_copy(update={"compute": compute, "endpoints": known})
            self.endpoints.add(NAME, self.servers.endpoint, self.servers.require)
            await self.servers.ready()
        return self.config

    @asynccontextmanager
    async def asleep(self) -> AsyncIterator[None]:
        """Within the block, the run's own servers free the memory of their GPUs for a training."""
        if self.servers:
            await self.servers.sleep()
        try:
            yield
        finally:
            if self.servers:
                await self.servers.wake()

    def close(self) -> None:
        """End the run's own servers."""
        if self.servers:
            self.servers.close()

    @property
    def agent(self) -> Agent:
        """The agent with these weights: the server's if it has loaded them, else the engine's here."""
        named = self.config.model
        agent = self._server.agent(self.checkpoint.id, self._judge) if self._server else None
        return agent or TokenAgent(
            self.engine, self.renderer, self.config.rollout, named.max_context, self.config.compute.batch, self._judge
        )

    def chat(self, name: str = "self") -> ChatModel:
        """A chat model with these weights ("self"), on the server that acts or here, or an endpoint of the recipe."""
        if name != "self":
            return self.endpoints.chat(name)
        return (self._server and self._server.chat(self.checkpoint.id)) or PolicyChat(self.engine, self.renderer)

    def train(
        self,
        examples: Sequence[DistillExample],
        spec: TrainSpec,
        *,
        teacher: State | None = None,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> TrainSummary:
        """Distill `examples` into the weights and save them in the folder of `spec`.

        `teacher`: the weights of a frozen teacher (None: the current ones). With `save_steps` the states from which a
        killed training resumes are kept beside the folder until it is written.
        """
        folder, settings = spec.root / spec.out, spec.config.distill
        settings = settings.model_copy(update={"lr": settings.lr * spec.shrink})
        states = folder.with_name(folder.name + ".states")
        summary = distill(
            self.model,
            examples,
            settings,
            seed=spec.seed,
            output_dir=states if settings.save_steps else folder.parent,
            progress=progress,
            references=References(teacher, self.anchor, self.renderer.tokenizer, self.scorer),
            part=spec.part,
        )
        self.checkpoint = spec.result(self._save(folder))
        if (states / _LOGS).exists():  # where they would be without saved states
            shutil.copytree(states / _LOGS, folder.parent / _LOGS, dirs_exist_ok=True)
        shutil.rmtree(states, ignore_errors=True)
        return summary

    def average(self, other: Checkpoint, root: Path, out: str) -> None:
        """Load the mean of these weights and those of `other`, and save it in `root / out`.

        With LoRA the two factors are averaged, which is close to the mean of their products, but not equal.
        """
        own, folder = snapshot(self.model), other.folder(root)
        if folder:
            load_checkpoint(self.model, folder, other.id)
        else:
            self._load_starter()
        mean = {name: (own[name] + weight) / 2 for name, weight in snapshot(self.model).items()}
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if name in mean:
                    weight.copy_(mean[name])
        self.checkpoint = other.model_copy(update={"id": self._save(root / out), "path": out})

    def _save(self, folder: Path) -> str:
        self.engine.reset()
        return save_checkpoint(self.model, folder)

    def restore(self, folder: Path | None, expected: str = "") -> str:
        """Load the weights of a folder (None = the starter's) and return their id.

        Raises DataError if the id is not `expected`.
        """
        self.engine.reset()
        if folder is not None:
            return load_checkpoint(self.model, folder, expected)
        self._load_starter()
        return self.starter.id

    def logprobs(self, ids: Sequence[int], start: int) -> list[float]:
        """Log-probabilities of `ids[start:]` by a plain forward pass; `server_policy.OwnModel`."""
        return plain_logprobs(self.model, ids, start)

    @contextmanager
    def rehearsal(self, folder: Path | None) -> Iterator[str]:
        """Within the block, hold the starter (None), or an adapter with an effect, saved in `folder`; yields its id."""
        if folder is None and self.checkpoint.id == self.starter.id:
            yield self.starter.id
            return
        own = snapshot(self.model)
        self._load_starter()
        try:
            yield self.starter.id if folder is None else self._with_effect(folder)
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            with torch.no_grad():
                for name, weight in trained(self.model).items():
                    weight.copy_(own[name])

    def _with_effect(self, folder: Path) -> str:
        """Make the adapter change log-probabilities by at least `_EFFECT` nats on average, and save it."""
        ids = ordinary_ids(self.model, self.renderer.tokenizer)[::97][:24]
        before, scale = self.logprobs(ids, 1), 0.01
        factors = [weight for name, weight in trained(self.model).items() if "lora_B" in name]
        generator = torch.Generator().manual_seed(0)
        while scale < 1e3:
            with torch.no_grad():
                for weight in factors:
                    weight.copy_(scale * torch.randn(weight.shape, generator=generator))
            changed = [abs(a - b) for a, b in zip(self.logprobs(ids, 1), before, strict=True)]
            if sum(changed) > _EFFECT * len(changed):
                break
            scale *= 2
        return self._save(folder)

    def _load_starter(self) -> None:
        if isinstance(self.model, PeftModel):
            set_peft_model_state_dict(self.model, self._starter)
        else:
            self.model.load_state_dict(self._starter, strict=False)


def _loaded(config: Config) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    named = config.model
    return load_policy(named.source, named.adapter, config.compute.device, named.dtype, named.quantize)


class LocalTraining:
    """`interfaces.TrainBackend` with the model of this process."""

    def __init__(self, policy: LocalPolicy) -> None:
        self._policy = policy

    async def train(
        self, spec: TrainSpec, progress: Callable[[int, int, float], None] | None = None
    ) -> tuple[Checkpoint, TrainSummary]:
        """Train on a file of examples."""
        policy, teacher = self._policy, None
        if spec.part and spec.part.teacher:
            await policy.load(spec.part.teacher, spec.root)
            teacher = snapshot(policy.model)
        await policy.load(spec.parent, spec.root)
        examples = read_jsonl(spec.examples, DistillExample)
        async with policy.asleep():
            summary = policy.train(examples, spec, teacher=teacher, progress=progress)
        return policy.checkpoint, summary

    async def average(self, a: Checkpoint, b: Checkpoint, root: Path, out: str) -> Checkpoint:
        """The mean of two checkpoints."""
        await self._policy.load(a, root)
        self._policy.average(b, root, out)
        return self._policy.checkpoint

    async def drift(self, checkpoint: Checkpoint, root: Path, episodes: Sequence[Trajectory]) -> Drift:
        """Entropy and, except for the starter itself, the KL divergence to the starter."""
        policy = await self._policy.load(checkpoint, root)
        anchor = policy.anchor if checkpoint.iteration else None
        return drift(
            policy.model, policy.renderer, episodes, anchor, checkpoint.iteration, checkpoint.id, policy.scorer
        )
