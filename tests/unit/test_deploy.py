"""The files of deploy/ are what their systems take, and call commands that exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml", reason="the files are YAML")

import yaml

from internalize.config.schema import load_config

DEPLOY = Path(__file__).parents[2] / "deploy"


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    return found


def require_run(command: str) -> None:
    """A call of `internalize run` whose settings are keys that exist."""
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == ["internalize", "run"]
    assert "--resume" in words
    settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    assert load_config(None, [re.sub(r"\$\w+|\$\(.*\)", "1", setting) for setting in settings]).compute.rollout == "ray"


def pods() -> list[dict[str, Any]]:
    cluster = load("rayjob.yaml")["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **group["template"]} for group in groups]


def test_the_pods_of_the_ray_job_are_pods() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate")
    for pod in pods():
        validator.validate(pod, validator.latest_version(), strict=True)


def test_the_ray_job_runs_what_its_pods_can() -> None:
    job = load("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    require_run(job["spec"]["entrypoint"])
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert f"compute.replicas={group['replicas']} " in job["spec"]["entrypoint"]
    mounted = {tuple(m["mountPath"] for m in c["volumeMounts"]) for pod in pods() for c in pod["spec"]["containers"]}
    assert mounted == {("/shared",)}, "every machine sees the run directory at one path"


def test_the_image_installs_what_there_is() -> None:
    parser = pytest.importorskip("dockerfile_parse", reason="needs the package dockerfile-parse").DockerfileParser
    file = parser(fileobj=(DEPLOY / "Dockerfile").open("rb"))
    assert next(one["instruction"] for one in file.structure if one["instruction"] != "COMMENT") == "FROM"
    assert file.baseimage == "python:3.11-slim"
    (extras,) = re.findall(r'"\.\[(.+?)\]"', file.content)
    project = (DEPLOY.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert [name for name in extras.split(",") if f"\n{name} = [" not in project] == []


def test_the_machine_that_is_rented_runs_it() -> None:
    task = load("skypilot.yaml")
    (command,) = re.findall(r"internalize run .*?(?=\n  ?copy|\ncopy)", task["run"], re.DOTALL)
    require_run(command.replace("\n", " ").replace("\\", " "))
    sky = pytest.importorskip("sky", reason="needs the package skypilot, which wants an environment of its own")
    assert sky.Task.from_yaml(str(DEPLOY / "skypilot.yaml")).num_nodes == 1


@pytest.mark.parametrize("gpus", [0, 4])
def test_the_slurm_script_starts_ray_on_every_node_and_the_run_once(tmp_path: Path, gpus: int) -> None:
    """A dry run: every command of the cluster is one that notes how it was called."""
    for name in ("scontrol", "srun", "ray", "internalize"):
        answer = 'printf "n1\\nn2\\n"' if name == "scontrol" else ":"
        (tmp_path / name).write_text(f'#!/bin/bash\necho {name} "$@" >> {tmp_path}/called\n{answer}\n')
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7"}
    job |= {"SLURM_GPUS_PER_NODE": str(gpus)} if gpus else {}
    environment = os.environ | job | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(DEPLOY / "slurm.sh"), "recipe.toml", "runs/first"]
    subprocess.run(command, env=environment, check=True, timeout=60, capture_output=True)
    called = (tmp_path / "called").read_text().splitlines()
    (run,) = [line for line in called if line.startswith("internalize")]
    require_run(run)
    assert f"compute.replicas={2 * gpus - 1 if gpus else 2} " in run
    assert f"compute.device={'cuda:3' if gpus else 'cpu'}" in run
    started = sorted(line for line in called if line.startswith("srun"))
    assert len(started) == 2
    assert f"ray start --head --node-ip-address=n1 --port=6379 --num-gpus={max(gpus - 1, 0)}" in started[0]
    assert f"--nodelist=n2 ray start --address=n1:6379 --num-gpus={gpus}" in started[1]
