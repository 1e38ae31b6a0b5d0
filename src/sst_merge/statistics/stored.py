"""What all statistics on disk have in common: coordinates, an index that is written last, atomic files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sst_merge.linalg import Side
from sst_merge.processes import Processes
from sst_merge.wheels import put_in_place, replace_file

BASIS_FILE = "basis.safetensors"
INDEX_FILE = "index.json"
ALONE = Processes()


@dataclass(frozen=True)
class PatchBasis:
    """Orthonormal coordinates of one module's patch; see :func:`sst_merge.linalg.patch_basis`."""

    side: Side
    q: Float[Tensor, "rank dim"]


@dataclass(frozen=True)
class Stored:
    """A finished statistic in its folder."""

    folder: Path
    safety_samples: int
    """Samples 0 .. safety_samples - 1 are the safety data, the others the utility data."""
    weights: tuple[float, ...]
    """Weight of each sample."""
    sides: dict[str, Side]

    @staticmethod
    def is_complete(folder: Path) -> bool:
        """Whether a measurement in this folder came to its end."""
        return (folder / INDEX_FILE).is_file()

    def basis(self, name: str) -> PatchBasis:
        """Coordinates of one module."""
        with safe_open(self.folder / BASIS_FILE, framework="pt") as file:
            return PatchBasis(self.sides[name], file.get_tensor(name))


def fixed_bases(folder: Path, bases: Mapping[str, PatchBasis], processes: Processes = ALONE) -> dict[str, PatchBasis]:
    """The coordinates that the batches in the folder are in: those of its first start, whatever a new SVD rounds to."""
    if processes.is_first and not (folder / BASIS_FILE).is_file():
        save_tensors(folder / BASIS_FILE, {name: basis.q for name, basis in bases.items()})
    processes.barrier()
    with safe_open(folder / BASIS_FILE, framework="pt") as file:
        return {name: PatchBasis(basis.side, file.get_tensor(name)) for name, basis in bases.items()}


def write_index(folder: Path, index: dict[str, object], processes: Processes = ALONE) -> None:
    """Mark a measurement as complete, once every process has done its part."""
    processes.barrier()
    if processes.is_first:
        replace_file(folder / INDEX_FILE, json.dumps(index) + "\n")
    processes.barrier()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors atomically."""
    temporary = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    put_in_place(temporary, path)
