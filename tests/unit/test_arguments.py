"""Settings that are passed on to transformers."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from internalize.config.schema import load_config
from internalize.errors import UserError
from internalize.training.arguments import require_arguments


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["distill.trainer={lr_scheduler_type='foo'}"], "foo"),
        (["distill.trainer={optim='foo'}"], "foo"),
        (["distill.report_to=['foo']"], "foo"),
        (["distill.trainer={warmup_steps='a'}"], ""),
        (["distill.trainer={optim='adamw_bnb_8bit'}"], ""),
    ],
)
def test_values_that_transformers_refuses_are_refused_before_anything_is_played(changes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=f"^distill.trainer or distill.report_to: .*{words}"):
        require_arguments(load_config(None, changes).distill, torch.device("cpu"))
    good = load_config(None, ["distill.trainer={bf16=true, lr_scheduler_type='cosine', fsdp='full_shard'}"])
    require_arguments(good.distill, torch.device("cpu"))


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="needs the package deepspeed"):
        require_arguments(load_config(None, ["distill.trainer={deepspeed='ds.json'}"]).distill, torch.device("cpu"))
