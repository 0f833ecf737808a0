"""Makes a GGUF file of an exported model with llama.cpp's own converter, if that is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from internalize.errors import UserError

from .export import Source, export

CONVERTER = "convert_hf_to_gguf.py"
HOME = "LLAMA_CPP"  # environment variable with the folder of llama.cpp's sources


def converter() -> Path:
    """The converter, in the folder that LLAMA_CPP names or on the PATH. Raises UserError if it is in neither."""
    home = os.environ.get(HOME)
    found = str(Path(home, CONVERTER)) if home else shutil.which(CONVERTER)
    if not found or not Path(found).is_file():
        where = f"{HOME} names {home}, which does not hold it" if home else f"put it on PATH, or its folder in {HOME}"
        raise UserError(f"a GGUF file needs llama.cpp's {CONVERTER}: {where}")
    return Path(found)


def export_gguf(source: Source, out: Path) -> None:
    """Write the whole model of a checkpoint to the file `out`, at the precision that the converter chooses.

    Raises UserError before the model is loaded if there is no converter or `out` exists, and if the conversion fails.
    """
    program = converter()
    if out.exists():
        raise UserError(f"{out}: is there already; choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        model, part = Path(folder, out.stem), Path(folder, out.name)
        export(source, model, merged=True)
        convert(program, model, part)
        part.replace(out)


def convert(program: Path, model: Path, out: Path) -> None:
    """Write the model in a folder to the file `out`. Raises UserError with the converter's last message."""
    command = [sys.executable, str(program), str(model), "--outfile", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the user's converter
    if done.returncode or not out.is_file():
        cause = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise UserError(f"{program}: could not convert the model ({cause})")
