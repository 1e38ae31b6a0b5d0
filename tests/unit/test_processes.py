"""One process, and an environment that promises more. Several of them: tests/e2e/test_several_processes.py."""

import pytest

from sst_merge.errors import ConfigError
from sst_merge.processes import Processes, join_processes


def test_a_process_alone_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = join_processes()
    assert alone == Processes()
    assert alone.is_first
    alone.barrier()
    assert alone.from_first("value") == "value"
    alone.leave()


def test_each_of_several_takes_its_own_gpu_and_none_on_the_cpu() -> None:
    second = Processes(rank=3, count=4, local_rank=1)
    assert second.own_device("cuda") == "cuda:1"
    assert second.own_device("cpu") == "cpu"
    assert second.own_device("cuda:0") == "cuda:0"


def test_processes_do_not_share_the_gpus_that_one_model_is_spread_over() -> None:
    assert Processes().own_device("balanced") == "balanced"
    with pytest.raises(ConfigError, match=r"2 processes cannot share.*device: cuda for one GPU each"):
        Processes(count=2).own_device("balanced")


def test_processes_that_cannot_find_each_other_are_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(ConfigError, match=r"MASTER_ADDR, MASTER_PORT is not set.*torchrun"):
        join_processes()
