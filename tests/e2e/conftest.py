"""One set of tiny inputs and one uninterrupted run for all tests of this folder; both are read only."""

from pathlib import Path

import pytest

from sst_merge.models import Base, load_base
from tiny_run import run_tiny, write_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def base(inputs: Path) -> Base:
    """The base of the inputs, read from its folder."""
    return load_base(str(inputs / "base"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, inputs: Path, base: Base) -> Path:
    """The folder of an uninterrupted run."""
    output = tmp_path_factory.mktemp("finished") / "run"
    run_tiny(inputs, output, base)
    return output
