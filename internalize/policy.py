"""The policy of this process: one model that is sampled and trained in place, and its checkpoints.

Left out: policies behind a server (an engine will do to sample them; they are not trained here). What must not
change: after every change of weights the engine forgets its cache, and `checkpoint` names the weights held now.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel, set_peft_model_state_dict

from .checkpoint import checkpoint_id, load_checkpoint, save_checkpoint, trained_state
from .config import Config
from .distill.trainer import TrainSummary, distill, new_adapter
from .engines.local import LocalEngine
from .engines.models import load_policy
from .records import DistillExample
from .render import PROTOCOLS, Renderer
from .rollout import Actor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LocalPolicy:
    """A model with a LoRA adapter (or all weights) to train. `lora_r` 0 trains all weights."""

    def __init__(self, config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        model_config = config.model
        self._config = config
        self.model = new_adapter(model, config.distill.lora_r, config.seed) if config.distill.lora_r else model
        self.model.eval()
        self.renderer = Renderer(tokenizer, PROTOCOLS[model_config.protocol])
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

    @classmethod
    def load(cls, config: Config) -> LocalPolicy:
        """The policy that the recipe's [model] section names. Raises UserError if there is no such model."""
        named = config.model
        return cls(config, *load_policy(named.source, named.adapter, named.device, named.dtype))

    @property
    def actor(self) -> Actor:
        """Who acts with these weights."""
        model = self._config.model
        return Actor(self._engine, self.renderer, self._config.rollout, model.max_context, model.batch)

    def train(
        self,
        examples: Sequence[DistillExample],
        *,
        seed: int,
        folder: Path,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> TrainSummary:
        """Distil `examples` into the weights and save them in `folder`."""
        summary = distill(
            self.model, examples, self._config.distill, seed=seed, output_dir=folder.parent, progress=progress
        )
        self._engine.reset()
        self.checkpoint = save_checkpoint(self.model, folder)
        return summary

    def restore(self, folder: Path | None) -> None:
        """Load a checkpoint (None = the starter's weights)."""
        if folder is None:
            self._load_starter()
        else:
            self.checkpoint = load_checkpoint(self.model, folder)
        self._engine.reset()

    def _load_starter(self) -> None:
        if isinstance(self.model, PeftModel):
            set_peft_model_state_dict(self.model, self._starter)
        else:
            self.model.load_state_dict(self._starter, strict=False)
        self.checkpoint = checkpoint_id(self._starter)
