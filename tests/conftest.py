"""Fixtures and isolation for every test: no network, no user cache, no colour."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of a Hugging Face library
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

from sst_merge.models import Base
from tiny import tiny_base  # pytest puts this folder on the path: it has a conftest.py and no __init__.py

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
