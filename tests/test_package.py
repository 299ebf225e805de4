"""`pip install .`: what it installs, and that it works without the checkout."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pathspec import PathSpec

from jobs.cluster.connection import sent_code
from tests.helpers.jobs_run import REPOSITORY, environment

PACKAGES = ("taehv", "data_pipeline", "jobs")
SCRIPTS = ("train", "tune", "evaluate", "reconstruct", "encode", "export", "doctor")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, installed into a folder of its own by the setuptools that is here.

    It is built from a copy: setuptools writes into the folder that it builds in.
    """
    source = tmp_path_factory.mktemp("source")
    target = tmp_path_factory.mktemp("target")
    for package in PACKAGES:
        shutil.copytree(
            REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--no-compile"]
    subprocess.run([*command, *offline, "--target", str(target), str(source)], check=True)
    return target


def _run(installed: Path, folder: Path, *command: str) -> str:
    """Standard output of a command that sees the installed project, from a folder elsewhere."""
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder, PYTHONPATH=str(installed)),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_file_of_the_packages_is_installed(installed: Path) -> None:
    def files(root: Path) -> set[str]:
        return {
            str(file.relative_to(root))
            for package in PACKAGES
            for file in (root / package).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }

    assert files(installed) == files(REPOSITORY)


def test_the_network_works_in_a_program_elsewhere(installed: Path, tmp_path: Path) -> None:
    program = """
import torch
import taehv.model
from taehv.model import TAEHV, ModelConfig, build_model
model = build_model(ModelConfig(encoder_width=8, decoder_widths=(8, 8, 8, 8)))
assert isinstance(model, TAEHV)
print(tuple(model.encode_video(torch.zeros(1, 9, 3, 32, 32)).shape))
print(taehv.model.network.__file__)
"""
    shape, file = _run(installed, tmp_path, sys.executable, "-c", program).splitlines()
    # 9 frames are extended to 12; the strides are 4 in time and 8 in space.
    assert shape == "(1, 3, 16, 4, 4)"
    assert Path(file).is_relative_to(installed)


def test_every_script_of_jobs_is_a_command(installed: Path, tmp_path: Path) -> None:
    """The installed commands themselves, in one process, which imports torch once."""
    program = """
import runpy, sys
for command in sys.argv[1:]:
    sys.argv = [command, "--help"]
    try:
        runpy.run_path(command, run_name="__main__")
    except SystemExit as end:
        print("ended", command, end.code or 0)
"""
    commands = [str(installed / "bin" / f"taehv-{script}") for script in SCRIPTS]
    output = _run(installed, tmp_path, sys.executable, "-c", program, *commands)
    ends = [line for line in output.splitlines() if line.startswith("ended ")]
    assert ends == [f"ended {command} 0" for command in commands]
    assert "--start-nodes" in output
    assert sorted(commands) == sorted(str(file) for file in (installed / "bin").iterdir())


def test_dependencies_are_those_of_requirements_txt(installed: Path, tmp_path: Path) -> None:
    program = """
from importlib.metadata import distribution
project = distribution("taehv-trainer")
print(project.version)
print("\\n".join(project.requires))
"""
    version, *required = _run(installed, tmp_path, sys.executable, "-c", program).splitlines()
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    assert required == [line for line in lines if line and not line.startswith("#")]
    assert (
        version == tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    )


def test_a_cluster_is_sent_the_packages_alone(installed: Path) -> None:
    (installed / "torch").mkdir()
    (installed / "torch" / "jobs.py").touch()
    code = sent_code(installed)
    assert code["working_dir"] == str(installed)
    # Ray reads `excludes` as git reads .gitignore.
    left_behind = PathSpec.from_lines("gitignore", code["excludes"])
    files = [file.relative_to(installed) for file in installed.rglob("*") if file.is_file()]
    sent = {file.parts[0] for file in files if not left_behind.match_file(file)}
    assert sent == set(PACKAGES)
    assert Path("torch/jobs.py") in files
    ours = [file for file in files if file.parts[0] in PACKAGES]
    assert [file for file in ours if left_behind.match_file(file)] == [
        file for file in ours if "__pycache__" in file.parts
    ]
