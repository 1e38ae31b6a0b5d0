"""Fixtures and isolation for every test: no network, no user cache, no colour."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of a Hugging Face library
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # `import tiny` from every folder of tests

from tiny import tiny_base

from sst_merge.models import Base


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test sees no token, no colour setting and no user's preferences, and leaves torch's settings as they were."""
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
