"""The policy of this process: one model that is sampled and trained in place, and its checkpoints.

With `model.endpoint` a server acts instead, for the weights that it holds (endpoints.py); training stays here.
Left out: how a server is asked. What must not change: after every change of weights the engine forgets its cache,
and `checkpoint` names the weights held now.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel, set_peft_model_state_dict

from internalize.config.schema import Config
from internalize.experience.redact import Redactor
from internalize.experience.selectors import build as build_selector
from internalize.inference.agent import TokenAgent
from internalize.inference.endpoints import Endpoints, Served, chat_model
from internalize.inference.loading import load_policy, resolve_device
from internalize.inference.local import LocalEngine
from internalize.inference.policy_chat import PolicyChat
from internalize.inference.renderer import Renderer
from internalize.inference.self_check import check_policy, in_one_sentence, ordinary_ids
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.interfaces import Agent, ChatModel, Selector
from internalize.judge import build as build_judge
from internalize.records import DistillExample, Drift, SelfCheck, TrainSummary, Trajectory

from .checkpoint import checkpoint_id, load_checkpoint, save_checkpoint, trained_state
from .distill import Given, Round, distill, new_adapter
from .drift import drift
from .hf_trainer import require_arguments
from .scoring import example_logits, require_plain_head
from .weights import State, snapshot

_LOG = logging.getLogger(__name__)
_LOGS = "runs"  # of transformers' logging back-ends, in the folder of a training

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LocalPolicy:
    """A model with a LoRA adapter (or all weights) to train. `lora_r` 0 trains all weights."""

    def __init__(self, config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        model_config = config.model
        self._config = config
        with in_one_sentence(model, "LoRA"):
            self.model = new_adapter(model, config.distill.lora_r, config.seed) if config.distill.lora_r else model
        self.model.eval()
        with in_one_sentence(model, "scoring"):
            require_plain_head(self.model)
        self.renderer = Renderer(tokenizer, TOOL_FORMATS[model_config.protocol])
        self._engine = LocalEngine(
            self.model,
            self.renderer,
            max_action_tokens=config.rollout.max_action_tokens,
            temperature=config.rollout.temperature,
            batch=model_config.batch,
            max_context=model_config.max_context,
        )
        self._starter = {name: tensor.clone() for name, tensor in trained_state(self.model).items()}
        self.checkpoint = checkpoint_id(self._starter)
        self.endpoints = Endpoints(config)
        self._local_chat = PolicyChat(self._engine, self.renderer)
        self._served = self._serve(model_config.endpoint) if model_config.endpoint else None
        self._clean = Redactor.of(config.redact).clean
        self._judge = build_judge(config.judge, self._asked, self._clean)
        self.self_check: SelfCheck | None = None  # of `check`
        self._anchor = snapshot(self.model) if config.distill.kl_anchor or config.evaluate.drift else None

    @classmethod
    def load(cls, config: Config, *, check: bool = True) -> LocalPolicy:
        """The policy that the recipe's [model] section names, checked unless it is neither sampled nor trained.

        Raises UserError if there is no such model, if sampling or scoring it would be wrong, or if an endpoint in use
        has no key or cannot be asked.
        """
        named = config.model
        Endpoints(config).check()  # before the model is loaded, which takes long
        require_arguments(config.distill, resolve_device(named.device))
        policy = cls(config, *load_policy(named.source, named.adapter, named.device, named.dtype))
        if check:
            policy.check()
        return policy

    def check(self) -> SelfCheck:
        """Compare sampling and scoring with plain forward passes. Raises UserError with the figure if they differ."""
        ids = ordinary_ids(self.model, self.renderer.tokenizer)
        found = check_policy(self.model, self._engine, example_logits, ids, self._config.model.max_context)
        _LOG.info(
            "self-check: log-probabilities differ by %.1e, scores by %.1e, gradients by %.1e; %.1f s",
            found.logprobs, found.scores, found.gradients, found.seconds,
        )  # fmt: skip
        self.self_check = found
        return found

    @property
    def agent(self) -> Agent:
        """Who acts with these weights: the server of `model.endpoint` if it holds them, else the engine here."""
        model = self._config.model
        served = self._served.agent(self.checkpoint, self._judge) if self._served else None
        if served is not None:
            return served
        return TokenAgent(
            self._engine, self.renderer, self._config.rollout, model.max_context, model.batch, self._judge
        )

    @property
    def chat(self) -> ChatModel:
        """These weights, asked for text, by whoever acts with them."""
        served = self._served.chat(self.checkpoint) if self._served else None
        return served or self._local_chat

    def selector(self, replies: Path) -> Selector:
        """Who picks items at a step, as the recipe says. A language model's replies are kept in that file.

        Raises UserError if the selector needs an extra that is not installed.
        """
        return build_selector(self._config.inject, self._asked, replies, self.checkpoint, self._clean)

    def _asked(self, name: str) -> ChatModel:
        return chat_model(self._config, name, self)

    def _serve(self, endpoint: str) -> Served:
        return Served(self.endpoints.link(endpoint), self._config, self.renderer, self.checkpoint)

    def train(
        self,
        examples: Sequence[DistillExample],
        *,
        seed: int,
        folder: Path,
        progress: Callable[[int, int, float], None] | None = None,
        start: State | None = None,
        part: Round | None = None,
        shrink: float = 1.0,
    ) -> TrainSummary:
        """Distil `examples` into the weights, at `shrink` times the learning rate, and save them in `folder`.

        `start`: the weights of a frozen teacher (None: those of now). `part`: one round of several. With `save_steps`
        the states that a killed training goes on from are kept beside `folder` until it is written.
        """
        config = self._config.distill.model_copy(update={"lr": self._config.distill.lr * shrink})
        states = folder.with_name(folder.name + ".states")
        summary = distill(
            self.model,
            examples,
            config,
            seed=seed,
            output_dir=states if config.save_steps else folder.parent,
            progress=progress,
            given=Given(start, self._anchor, self.renderer.tokenizer, part),
        )
        self._keep(folder)
        if (states / _LOGS).exists():  # where they are without states to go on from
            shutil.copytree(states / _LOGS, folder.parent / _LOGS, dirs_exist_ok=True)
        shutil.rmtree(states, ignore_errors=True)
        return summary

    def average(self, other: Path, folder: Path) -> None:
        """The mean of these weights and those of the checkpoint `other` become the policy, saved in `folder`.

        With LoRA the mean is of the two factors, which is not the mean of their products but lies near both.
        """
        own = self.weights()
        load_checkpoint(self.model, other)
        mean = {name: (own[name] + weight) / 2 for name, weight in self.weights().items()}
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if name in mean:
                    weight.copy_(mean[name])
        self._keep(folder)

    def _keep(self, folder: Path) -> None:
        """Save the weights of now and let whoever acts with them have them."""
        self._engine.reset()
        self.checkpoint = save_checkpoint(self.model, folder)
        if self._served:
            self._served.offer(self.checkpoint, folder)

    def drift(self, episodes: Sequence[Trajectory], iteration: int) -> Drift:
        """How far these weights are from the starter's, on episodes that they played."""
        return drift(
            self.model, self.renderer, episodes, self._anchor if iteration else None, iteration, self.checkpoint
        )

    def weights(self) -> State:
        """A copy of the trained weights of this moment, to be a teacher later."""
        return snapshot(self.model)

    def restore(self, folder: Path | None) -> None:
        """Load a checkpoint (None = the starter's weights)."""
        if folder is None:
            self._load_starter()
        else:
            self.checkpoint = load_checkpoint(self.model, folder)
            if self._served:
                self._served.offer(self.checkpoint, folder)
        self._engine.reset()

    def _load_starter(self) -> None:
        if isinstance(self.model, PeftModel):
            set_peft_model_state_dict(self.model, self._starter)
        else:
            self.model.load_state_dict(self._starter, strict=False)
        self.checkpoint = checkpoint_id(self._starter)
