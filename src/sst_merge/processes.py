"""Several processes of one command, as ``torchrun`` and ``accelerate launch`` start them.

They share the calibration; everything else is done by the first one. Nothing is set up where there is only one.
"""

import datetime
import os
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed

from sst_merge.errors import ConfigError

Value = TypeVar("Value")
PATIENCE = datetime.timedelta(hours=24)
"""How long a process waits for the others; the launcher ends all of them when one fails."""


@dataclass(frozen=True)
class Processes:
    """This process among those that were started together."""

    rank: int = 0
    """Number of this process, from 0."""
    count: int = 1
    """How many there are."""
    local_rank: int = 0
    """Number of this process on its machine: which of its GPUs it takes."""

    @property
    def is_first(self) -> bool:
        """Whether this process does what is done once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            torch.distributed.barrier()

    def from_first(self, value: Value) -> Value:
        """The first process's value, in every process."""
        if self.count == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def own_device(self, device: str) -> str:
        """The device of this process: one GPU each, where the command is for GPUs.

        Example:
            >>> Processes(rank=5, count=8, local_rank=1).own_device("cuda"), Processes().own_device("cuda")
            ('cuda:1', 'cuda')

        Raises:
            ConfigError: If every process would spread the model over all GPUs.
        """
        if self.count > 1 and device == "balanced":
            raise ConfigError(
                f"device: balanced spreads one model over all GPUs, which {self.count} processes cannot share. Start "
                "one process, or use device: cuda for one GPU each."
            )
        return f"cuda:{self.local_rank}" if self.count > 1 and device == "cuda" else device

    def leave(self) -> None:
        """Take leave of the others, when nothing is shared any more."""
        if self.count > 1:
            self.barrier()
            torch.distributed.destroy_process_group()


def join_processes() -> Processes:
    """Find the processes that a launcher started, by ``WORLD_SIZE``, ``RANK`` and ``LOCAL_RANK``; alone without them.

    They talk by gloo, over the address in ``MASTER_ADDR`` and ``MASTER_PORT``: there is little to say.

    Raises:
        ConfigError: If the environment names several processes, but not how they find each other.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE is {count} in the environment, but {', '.join(missing)} is not set. Start the command with "
            "torchrun or accelerate launch, or unset WORLD_SIZE."
        )
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    return Processes(torch.distributed.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))
