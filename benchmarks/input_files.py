"""The kinds of files that commands read, for `benchmarks.fuzz`: valid ones of each, and what reads one for a user."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import internalize
from benchmarks.attacks import attempts
from internalize.cli.main import main as command_line
from internalize.config.schema import load_config
from internalize.environments.html import read as read_html
from internalize.environments.question_files import tasks_of
from internalize.environments.site import Site
from internalize.environments.web.questions import web_task
from internalize.errors import InternalizeError
from internalize.experience.pool import empty, export_official, save_pool
from internalize.inference.architecture import Architecture
from internalize.records import Experience, PoolEdit
from internalize.report.run_page import run_page
from internalize.report.run_report import load
from internalize.stages.study import configs, load_grid
from tests.unit.report_run import make_run

RECIPES = Path(internalize.__file__).parent / "config" / "recipes"


@dataclass(frozen=True)
class Kind:
    """Valid files of one kind, and what reads one."""

    valid: Callable[[Path], list[bytes]]
    read: Callable[[Path, Path], None]  # the file, and an empty folder
    suffix: str = ".jsonl"


def _cli(*arguments: object) -> None:
    """The command line; what it printed on standard error has to be one line if it refuses."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            command_line([str(one) for one in arguments])
    except SystemExit as ended:
        lines = [line for line in said.getvalue().splitlines() if line.startswith("internalize: ")]
        if ended.code in {2, 3} and len(lines) == 1:
            return
        if ended.code not in {0, None}:
            raise AssertionError(f"exit {ended.code}: {said.getvalue()[:300]}") from ended


def _episodes(_: Path) -> list[bytes]:
    found = [*attempts("a", ("Found:\n1. x", "Always look.")), *attempts("b", ())]
    return [b"".join(_line(t.model_dump(mode="json")) for t in found)]


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _pool(folder: Path) -> list[bytes]:
    items = [Experience.new(text, "principle", "x", origins=("a",)) for text in ("Look first.", "When lost, stop.")]
    save_pool(empty(5).apply(PoolEdit(op="ADD", item=item) for item in items), folder / "pool.json")
    return [(folder / "pool.json").read_bytes()]


def _official(_: Path) -> list[bytes]:
    pool = empty(5).apply([PoolEdit(op="ADD", item=Experience.new("Look first.", "principle", "x"))])
    return [json.dumps(export_official(pool, style)).encode() for style in ("dict", "list")]


def _logs(folder: Path) -> list[bytes]:
    (folder / "t.jsonl").write_bytes(_episodes(folder)[0])
    found = []
    for kind in ("chat", "official-rollout", "official-eval"):
        _cli("logs", "export", folder / "t.jsonl", "--format", kind, "--out", folder / f"{kind}.out")
        found.append((folder / f"{kind}.out").read_bytes())
    anthropic = {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]},
                              {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}]},
                              {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "seen"}]},
                              {"role": "assistant", "content": "done"}], "system": "s", "score": 1}  # fmt: skip
    return [*found, *(file.read_bytes() for file in sorted(folder.glob("case-*"))), _line(anthropic)]


def _claims(_: Path) -> list[bytes]:
    rows = [{"question": "2+2?", "reference": "4", "answer": "four", "id": str(n)} for n in range(3)]
    return [b"".join(map(_line, rows))]


def _questions(_: Path) -> list[bytes]:
    rows = [
        {"question": f"Who is {n}?", "answer": "x", "info": {"type": "easy"}, "root_url": "https://a.example"}
        for n in range(6)
    ]
    return [b"".join(map(_line, rows))]


def _run_files(folder: Path) -> list[bytes]:
    """Which file of a run is changed is part of the input: its name stands in the first line."""
    run = make_run(folder / "run")
    files = sorted(path for path in run.rglob("*") if path.suffix in {".json", ".jsonl"})
    return [path.relative_to(run).as_posix().encode() + b"\n" + path.read_bytes() for path in files]


def _read_run(file: Path, folder: Path) -> None:
    name, _, data = file.read_bytes().partition(b"\n")
    run = folder / "run"
    shutil.copytree(file.parent / "valid" / "run", run)
    target = run / name.decode("ascii", "replace").replace("\x00", "")
    if len(name) > 200 or ".." in target.parts or not target.is_file():
        return
    target.write_bytes(data)
    for command in ("verify", "diagnose", "view"):
        _cli(command, run)
    run_page(load(run))


def _recipes(_: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(RECIPES.glob("*.toml"))]


def _studies(folder: Path) -> list[bytes]:
    """Studies name recipes in the folder above them."""
    for recipe in RECIPES.glob("*.toml"):
        shutil.copy(recipe, folder.parents[1])
    return [path.read_bytes() for path in sorted((RECIPES / "studies").glob("*.toml"))]


def _pages(_: Path) -> list[bytes]:
    page = ("<!doctype html><html><head><title>A</title><base href='/x/'></head><body><nav>n</nav><h1>T</h1><p>a <b>b</b>"
            "<a href='y?z#w'>l</a><table><tr><td>1</td><td>2</td></tr></table><pre><code>x\n y</code></pre><ul><li>i</ul>"
            "<img alt='p' src='data:x'></body></html>")  # fmt: skip
    return [page.encode(), b"# Title\n\n- a\n- b [l](x.md)\n\n```py\nx\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"]


def _read_page(file: Path, folder: Path) -> None:
    text = file.read_bytes().decode("utf-8", "replace")
    read_html(text, "https://a.example/b/")
    for ending in ("html", "md", "txt"):
        (folder / f"page.{ending}").write_bytes(file.read_bytes())
    site = Site(folder)
    for path, page in site.pages.items():
        assert site.resolve(path) in {path, None}
        for _, address in page.links:
            site.resolve(address)


def _read_episodes(file: Path, folder: Path) -> None:
    _cli("extract", file, "--out", folder / "pool.json")
    _cli("logs", "export", file, "--out", folder / "chat.jsonl")


def _read_pool(file: Path, folder: Path) -> None:
    for command in ("show", "lint"):
        _cli("pool", command, file)
    _cli("pool", "export", file, "--out", folder / "x.json")


def _read_study(file: Path, _: Path) -> None:
    configs(load_grid(file), file)


def _tables(_: Path) -> list[bytes]:
    """Questions as cells: with commas, tabs, semicolons, and as one JSON list; the first line says which."""
    rows = [(f"Who is {n}?", f'"a, {n}"', "train") for n in range(6)]
    found = []
    for ending, mark in (("csv", ","), ("tsv", "\t"), ("csv", ";")):
        lines = [mark.join(("question", "answer", "split")), *(mark.join(row) for row in rows)]
        found.append(f"{ending}\n".encode() + "\n".join(lines).encode() + b"\n")
    named = [dict(zip(("question", "answer", "split"), row, strict=True)) for row in rows]
    return [*found, b"json\n" + json.dumps(named).encode()]


def _read_table(file: Path, folder: Path) -> None:
    ending, _, data = file.read_bytes().partition(b"\n")
    target = folder / f"t.{ending.decode() if ending in {b'csv', b'tsv', b'json'} else 'csv'}"
    target.write_bytes(data)
    tasks_of(str(target), web_task)


def _parquet(folder: Path) -> list[bytes]:
    import pyarrow as pa  # noqa: PLC0415 - an extra
    from pyarrow import parquet  # noqa: PLC0415

    rows = [{"question": f"Who is {n}?", "answer": "x", "info": {"type": "easy"}, "urls": ["a"]} for n in range(6)]
    found = []
    for compression in ("none", "snappy", "zstd"):
        parquet.write_table(pa.Table.from_pylist(rows), folder / "q.parquet", compression=compression)
        found.append((folder / "q.parquet").read_bytes())
    return found


def _model_files(folder: Path) -> list[bytes]:
    """Which file of a model's folder is changed stands in the first line."""
    from tests.tiny import tiny_model, tiny_tokenizer  # noqa: PLC0415 - imports torch

    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return _named(folder / "model")


def _named(folder: Path) -> list[bytes]:
    return [path.name.encode() + b"\n" + path.read_bytes() for path in sorted(folder.iterdir())]


def _changed(file: Path, folder: Path, kind: str) -> Path | None:
    """The valid folder of this kind with one file changed; None if there is no file of the name."""
    name, _, data = file.read_bytes().partition(b"\n")
    copy = folder / kind
    shutil.copytree(file.parent / "valid" / kind, copy)
    if name.decode("ascii", "replace") not in {path.name for path in copy.iterdir()}:
        return None
    (copy / name.decode()).write_bytes(data)
    return copy


def _read_model(file: Path, folder: Path) -> None:
    from internalize.training.policy import LocalPolicy  # noqa: PLC0415 - imports torch

    if (model := _changed(file, folder, "model")) is None:
        return
    with contextlib.suppress(InternalizeError):  # the next reader sees it too
        Architecture.of(str(model))
    config = load_config(None, [f"model.source={json.dumps(str(model))}", "model.max_context=400", "distill.lora_r=2"])
    LocalPolicy.of(config)


def _adapter(folder: Path) -> list[bytes]:
    from internalize.training.adapter import new_adapter  # noqa: PLC0415 - imports torch
    from internalize.training.checkpoint import save_checkpoint  # noqa: PLC0415
    from tests.tiny import tiny_model  # noqa: PLC0415

    save_checkpoint(new_adapter(tiny_model(), 2, 0), folder / "adapter")
    return _named(folder / "adapter")


@cache
def _model_with_adapter() -> Any:
    from internalize.training.adapter import new_adapter  # noqa: PLC0415 - imports torch
    from tests.tiny import tiny_model  # noqa: PLC0415

    return new_adapter(tiny_model(), 2, 0)


def _read_adapter(file: Path, folder: Path) -> None:
    """As a checkpoint of a run, and as a recipe's `model.adapter`."""
    from internalize.inference.loading import _with_adapter  # noqa: PLC0415 - imports torch
    from internalize.training.checkpoint import load_checkpoint  # noqa: PLC0415
    from tests.tiny import tiny_model  # noqa: PLC0415

    if (adapter := _changed(file, folder, "adapter")) is None:
        return
    with contextlib.suppress(InternalizeError):
        load_checkpoint(_model_with_adapter(), adapter)
    _with_adapter(tiny_model(), str(adapter))


def _gguf(folder: Path) -> list[bytes]:
    """A model of two layers with its tokenizer, in one file."""
    import gguf  # noqa: PLC0415 - of the learning half

    from tests.tiny import tiny_model, tiny_tokenizer  # noqa: PLC0415 - imports torch

    words = tiny_tokenizer().get_vocab()
    pairs = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]["merges"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(words, key=lambda word: words[word]))
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in tiny_model().state_dict().items():
        writer.add_tensor(_gguf_name(name), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [(folder / "m.gguf").read_bytes()]


_GGUF_NAMES = (("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output"),
               ("model.layers.", "blk."), ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"),
               ("self_attn.v_proj", "attn_v"), ("self_attn.o_proj", "attn_output"), ("mlp.gate_proj", "ffn_gate"),
               ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down"), ("input_layernorm", "attn_norm"),
               ("post_attention_layernorm", "ffn_norm"))  # fmt: skip


def _gguf_name(name: str) -> str:
    for ours, theirs in _GGUF_NAMES:
        name = name.replace(ours, theirs)
    return name


def _read_gguf(file: Path, folder: Path) -> None:
    from internalize.inference.loading import load_policy  # noqa: PLC0415 - imports torch

    os.environ["INTERNALIZE_CACHE"] = str(folder / "cache")
    with contextlib.suppress(InternalizeError):
        Architecture.of(str(file))
    load_policy(str(file), "none", "cpu")


KINDS: dict[str, Kind] = {
    "recipe": Kind(_recipes, lambda file, _: [load_config(file)].clear(), ".toml"),
    "study": Kind(_studies, _read_study, ".toml"),
    "pool": Kind(_pool, _read_pool, ".json"),
    "official-pool": Kind(_official, lambda f, d: _cli("pool", "import", f, "--out", d / "pool.json"), ".json"),
    "trajectories": Kind(_episodes, _read_episodes),
    "logs": Kind(_logs, lambda f, d: _cli("logs", "import", f, "--out", d / "t.jsonl", "--skip")),
    "claims": Kind(_claims, lambda f, d: _cli("judge", f, "--out", d / "v.jsonl")),
    "questions": Kind(_questions, lambda f, _: [tasks_of(str(f), web_task)].clear()),
    "run": Kind(_run_files, _read_run),
    "page": Kind(_pages, _read_page, ".html"),
    "table": Kind(_tables, _read_table, ".bin"),
    "parquet": Kind(_parquet, lambda f, _: [tasks_of(str(f), web_task)].clear(), ".parquet"),
    "model": Kind(_model_files, _read_model, ".bin"),
    "adapter": Kind(_adapter, _read_adapter, ".bin"),
    "gguf": Kind(_gguf, _read_gguf, ".gguf"),
}
