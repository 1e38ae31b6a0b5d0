"""Two processes of one command, started as torchrun and accelerate launch do, on the CPU with gloo."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sst_merge.models import Base
from sst_merge.statistics import KroneckerFactors
from tiny_run import artefacts, run_file, run_tiny


def launch(count: int, *arguments: str) -> list[subprocess.CompletedProcess[str]]:
    """The program in ``count`` processes; each is told its place by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    command = [sys.executable, "-c", "import sys; from sst_merge import cli; sys.exit(cli.main())", *arguments]
    started = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    ended = []
    for process in started:
        out, err = process.communicate(timeout=240)
        ended.append(subprocess.CompletedProcess(command, process.returncode, out, err))
    return ended


@pytest.mark.parametrize(("fisher", "point"), [("exact", "utility_and_merged"), ("kfac", "utility")])
def test_two_processes_give_the_statistics_and_the_adapter_of_one(
    inputs: Path, base: Base, tmp_path: Path, fisher: str, point: str
) -> None:
    data = {name: str(inputs / f"{name}_calibration.jsonl") for name in ("utility", "safety")}
    changes = {
        "method": {"name": "sst", "fisher": fisher},
        "comparisons": None,
        "evaluation": None,
        "calibration": {**data, "batch_size": 3, "point": point},
    }
    run_tiny(inputs, tmp_path / "one", base, **changes)
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "two", **changes)
    first, second = launch(2, "run", str(file))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stdout
    assert not second.stdout
    one, two = artefacts(tmp_path / "one"), artefacts(tmp_path / "two")
    assert one.keys() == two.keys()
    if fisher == "exact":  # every batch file is written by one process, the same whichever that is
        assert one == two
        return
    (folder,) = (tmp_path / "two" / "statistics").iterdir()
    sums, expected = (
        load_file(tmp_path / name / "statistics" / folder.name / "sums.safetensors") for name in ("two", "one")
    )
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5)  # sums of float32 in another order
    assert KroneckerFactors.is_complete(folder)
    adapters = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("two", "one"))
    found, wanted = adapters
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_more_processes_than_batches_and_a_restart_with_fewer(inputs: Path, base: Base, tmp_path: Path) -> None:
    changes = {
        "method": {"name": "sst", "fisher": "kfac"},
        "comparisons": None,
        "evaluation": None,
        "calibration": {
            **{name: str(inputs / f"{name}_calibration.jsonl") for name in ("utility", "safety")},
            "batch_size": 10,
        },
    }
    run_tiny(inputs, tmp_path / "one", base, until="calibrate", **changes)
    file = run_file(tmp_path / "run.yaml", inputs, tmp_path / "two", **changes)
    ended = launch(2, "calibrate", str(file))
    assert [each.returncode for each in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    one, two = artefacts(tmp_path / "one"), artefacts(tmp_path / "two")
    assert {name: one[name] for name in one if name.startswith("statistics")} == two  # one batch: one sum
    run_tiny(inputs, tmp_path / "two", base, until="merge", **changes)
    assert (tmp_path / "two" / "adapter").is_dir()
