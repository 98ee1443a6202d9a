"""What the tests of models share: folders, programs, processes of their own."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
SHIPPED = ROOT / "examples" / "model"
PROMPT = "And the king said"
LIMIT = "import signal; signal.alarm(120)\n"  # a process that hangs ends by that


def golden(name):
    """A folder of tests/golden, and what is in its golden.safetensors, as NumPy arrays."""
    safetensors = pytest.importorskip("safetensors.numpy")
    return GOLDEN / name, safetensors.load_file(GOLDEN / name / "golden.safetensors")


def program(*arguments):
    """What a program of the library prints; MAMBA_PROGRAM_DIR says where they are."""
    folder = os.environ.get("MAMBA_PROGRAM_DIR")
    if folder is None:
        pytest.skip("MAMBA_PROGRAM_DIR, a folder with mamba-lm, is not set")
    command = [pathlib.Path(folder) / arguments[0], *arguments[1:]]
    return subprocess.run(command, check=True, capture_output=True).stdout


def python(script, *arguments):
    """A process of Python that runs `script`, with this one's path, its output as pipes."""
    path = os.pathsep.join(sys.path)
    return subprocess.Popen(
        [sys.executable, "-u", "-c", LIMIT + script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def run_python(script, *arguments):
    """What it printed, once it has ended well."""
    process = python(script, *arguments)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "leaked" not in errors, errors
    return out
