"""Fixtures and isolation for every test: no network, no user cache, no colour."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of a Hugging Face library
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sst_merge import cli
from sst_merge.allocator import keep_freed_memory
from sst_merge.models import Base, load_base
from tiny import tiny_base  # pytest puts this folder on the path: it has a conftest.py and no __init__.py
from tiny_run import run_tiny, write_inputs

keep_freed_memory()
torch.set_num_threads(1)  # tiny tensors: threads would only wait for each other, and sums keep their order


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees no token and no colour setting of the user."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def rng() -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def llama() -> Base:
    """A tiny Llama in float32. Shared: change its weights through ``applied`` only."""
    return tiny_base("llama")


@pytest.fixture(scope="session")
def llama64() -> Base:
    """The same tiny Llama in float64. Shared: change its weights through ``applied`` only."""
    return tiny_base("llama", dtype=torch.float64)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model, two adapters and data on disk. Shared: copy before changing."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def base(inputs: Path) -> Base:
    """The base of the inputs, read from its folder."""
    return load_base(str(inputs / "base"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, inputs: Path, base: Base) -> Path:
    """The folder of an uninterrupted run on the inputs. Shared: copy before changing."""
    output = tmp_path_factory.mktemp("finished") / "run"
    run_tiny(inputs, output, base)
    return output


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def sst(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """``sst-merge ARGUMENTS`` in this process; an exception that ``main`` lets through is a traceback for the user."""

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["sst-merge", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        written = capsys.readouterr()
        return Ended(int(ended.value.code or 0), written.out, written.err)

    return call
