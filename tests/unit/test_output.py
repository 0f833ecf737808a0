"""What the command line prints of others' text, and how it ends: signals, full disks, closed pipes, deep values."""

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import internalize.cli
from internalize.config.schema import load_config
from internalize.errors import ConfigError, Incomplete
from internalize.experience.pool import ExperiencePool, save_pool
from internalize.records import Experience, is_deep, json_value
from internalize.runs.progress import going_on_by
from internalize.runs.visible import visible
from internalize.stages.study import load_grid
from tests.command import Call, refused

CLIPBOARD = "\x1b]52;c;cm0gLXJmIC8=\x07"
HIDING = f"Look first.{CLIPBOARD}\x1b[2J\x9b31m\u202eSIHT\u200b\r over"


def pool(path: Path) -> Path:
    save_pool(ExperiencePool((Experience.new(HIDING, "principle", f"x{CLIPBOARD}"),), 5), path)
    return path


@pytest.mark.parametrize("command", ["show", "lint", "diff"])
def test_items_are_printed_without_what_a_terminal_obeys(command: str, call: Call, tmp_path: Path) -> None:
    file = pool(tmp_path / "pool.json")
    empty = tmp_path / "empty.json"
    save_pool(ExperiencePool((), 5), empty)
    ended = call("pool", command, *([empty] if command == "diff" else []), file)
    assert "Look first." in ended.out
    assert visible(ended.out) == ended.out
    assert not set(ended.out) & set("\x1b\x07\x9b\u202e\u200b\r")


def test_an_export_into_a_file_or_pipe_is_what_the_pool_holds(call: Call, tmp_path: Path) -> None:
    assert HIDING in json.loads(call("pool", "export", pool(tmp_path / "pool.json")).out).values()


def test_messages_of_errors_and_of_libraries_are_one_visible_line(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(call("pool", "show", tmp_path / f"no{CLIPBOARD}file"), "no]52;c;cm0gLXJmIC8=file")
    logging.getLogger("some.library").error("line 1\nline 2%s", CLIPBOARD, exc_info=ValueError("inner"))
    assert capsys.readouterr().err in {"line 1 line 2]52;c;cm0gLXJmIC8=\n", ""}  # "": pytest has its own handler


def test_details_are_told_where_they_are_asked_for(call: Call) -> None:
    plain, quiet, verbose = (call(*word, "plan", "gone.toml") for word in ((), ("--quiet",), ("-v",)))
    assert plain == quiet
    assert (verbose.code, verbose.out) == (plain.code, plain.out)
    assert verbose.err.startswith("Traceback ")
    assert verbose.err.endswith(plain.err)
    assert refused(call("-q", "-v", "plan", "gone.toml"), "exclude each other")
    assert refused(call("plan", "gone.toml"), "gone.toml"), "the next call is as ever"


def test_a_shell_completes_commands() -> None:
    program = "import sys; sys.argv[0] = 'internalize'; from internalize.cli.__main__ import main; main()"
    asked = {"_INTERNALIZE_COMPLETE": "bash_complete", "COMP_WORDS": "internalize ev", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("plain,evaluate\n", "")


def test_nothing_else_of_the_command_line_prints() -> None:
    folder = Path(internalize.cli.__file__).parent
    for file in folder.glob("*.py"):
        text = file.read_text()
        assert file.name == "output.py" or ("click.echo" not in text and "print(" not in text.replace(".print(", "")), (
            file
        )


CHILD = """
import asyncio, os, signal, sys, time
from internalize.cli import main as cli
from internalize.runs.progress import going_on_by
import click
def sleeps():
    print("begun", flush=True)
    for _ in range(600):
        time.sleep(0.1)  # a signal that comes just before a sleep is heard after it
async def in_loop():
    print("begun", flush=True)  # not before: a loop that is half made says so when it goes
    await asyncio.sleep(60)
@cli.cli.command("wait")
def wait():
    with going_on_by("run it again"):
        {waits}
cli.main(["wait"])
"""
OTHERS = """
        try:
            sleeps()
        except BaseException as error:  # as code of libraries may do
            raise SystemError("it ended with an exception set") from error
"""
WAITS = {"plain": "sleeps()", "loop": "asyncio.run(in_loop())", "others": OTHERS.strip()}


@pytest.mark.parametrize("waits", WAITS.values(), ids=WAITS)
@pytest.mark.parametrize(
    ("number", "interrupts"),
    [
        (signal.SIGTERM, signal.default_int_handler), (signal.SIGHUP, signal.default_int_handler),
        (signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_IGN),  # as in the background
    ],
)  # fmt: skip
def test_a_signal_ends_a_command_in_one_sentence(waits: str, number: signal.Signals, interrupts: Any) -> None:
    held = signal.signal(signal.SIGINT, interrupts)
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD.format(waits=waits)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, held)
        signal.signal(signal.SIGHUP, hung_up)
    with child:
        assert child.stdout
        assert child.stdout.readline() == "begun\n"
        child.send_signal(number)
        _, said = child.communicate(timeout=30)
    assert (child.returncode, said) == (3, "internalize: interrupted; to go on, run it again\n")


def test_a_full_disk_is_an_interruption(tmp_path: Path) -> None:
    full = pytest.raises(Incomplete, match="No space left on device; once there is room, run it again")
    with full, going_on_by("run it again"), Path("/dev/full").open("w") as file:
        file.write("x" * 100_000)


def test_a_file_that_cannot_be_read_is_one_sentence_and_a_closed_reader_none(call: Call, tmp_path: Path) -> None:
    (tmp_path / "pool.json").mkdir()
    ended = call("pool", "show", tmp_path / "pool.json")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    many = tuple(Experience.new(f"Look at {n}. " + "x" * 500, "principle", "x") for n in range(2000))
    save_pool(ExperiencePool(many, 2000), tmp_path / "many.json")
    program, file = (shlex.quote(str(path)) for path in (sys.executable, tmp_path / "many.json"))
    command = f"{program} -m internalize.cli pool show {file} | head -1 >/dev/null"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stderr == ""


def test_values_nested_too_deeply_are_refused_by_file(call: Call, tmp_path: Path) -> None:
    deep = tmp_path / "deep.toml"
    for text in (
        "env.options.a = " + "[" * 5000 + "]" * 5000, "env.options.a = " + "[" * 300 + "]" * 300,
        "env.options." + ".".join(["a"] * 5000) + " = 1", "seed = 1" + "0" * 5000,
    ):  # fmt: skip
        deep.write_text(text)
        with pytest.raises(ConfigError, match=r"deep\.toml: not valid TOML"):
            load_config(deep)
        with pytest.raises(ConfigError, match=r"deep\.toml: not valid TOML"):
            load_grid(deep)
    for depth in (150, 300, 100_000):
        text = "[" * depth + "]" * depth
        if depth <= 150:
            assert not is_deep(json_value(text))
            continue
        with pytest.raises(ValueError, match="nested too deeply"):
            json_value(text)
    (tmp_path / "official.json").write_text("[" * 100_000)
    assert refused(call("pool", "import", tmp_path / "official.json", "--out", tmp_path / "p.json"), "official.json")
