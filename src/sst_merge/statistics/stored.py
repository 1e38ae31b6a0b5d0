"""What all statistics on disk have in common: coordinates, an index that is written last, files that show damage."""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from sst_merge.atomic import UNFINISHED, put_in_place, replace_file
from sst_merge.errors import StatisticsError
from sst_merge.linalg import Side
from sst_merge.processes import Processes

BASIS_FILE = "basis.safetensors"
INDEX_FILE = "index.json"
ALONE = Processes()
CHECKS = "sst_merge"
"""Key of the metadata: the names of a file and of its folder, which stands for what the statistics depend on, and the
CRC-32 of every tensor; one key, so that bytes do not vary."""
DTYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64}


@dataclass(frozen=True)
class PatchBasis:
    """Orthonormal coordinates of one module's patch; see :func:`sst_merge.linalg.patch_basis`."""

    side: Side
    q: Float[Tensor, "rank dim"]


class TensorFile:
    """A file of :func:`save_tensors`: read and not mapped, and every tensor checked when it is read.

    Files of another writer, without sums, are read as they are.

    A merge reads every file once a module. The library would read the header each time, which takes longer than the
    numbers do, and a mapped file counts as memory of the process as long as it is open.

    Raises:
        StatisticsError: Here and in :meth:`tensor`, if the file is missing, cut, changed or under another one's name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                if size > path.stat().st_size:
                    raise ValueError("cut off")
                self._entries: dict[str, Any] = json.loads(file.read(size))
            checks = json.loads(self._entries.pop("__metadata__", {}).get(CHECKS, "{}"))
            self._crc32: dict[str, int] = checks.get("crc32", {})
            if checks and checks["file"] != path.name:
                raise ValueError(f"it was written as {checks['file']}")
            if checks and checks.get("folder", path.absolute().parent.name) != path.absolute().parent.name:
                raise ValueError(f"it was written into a folder {checks['folder']}")
            if checks and self._crc32.keys() != self._entries.keys():
                raise ValueError("tensors and sums differ")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(path, error) from error
        self._data = 8 + size

    @property
    def names(self) -> list[str]:
        """Of the tensors."""
        return sorted(self._entries)

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        try:
            entry = self._entries[name]
            start, end = entry["data_offsets"]
            with self.path.open("rb") as file:
                file.seek(self._data + start)
                values = bytearray(end - start)
                if file.readinto(values) != end - start:
                    raise ValueError("cut off")
            if self._crc32 and zlib.crc32(values) != self._crc32[name]:
                raise ValueError(f"the numbers of '{name}' are not those that were written")
            dtype = DTYPES[entry["dtype"]]
            found = torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)
            return found.view(entry["shape"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise _damaged(self.path, error) from error

    def tensors(self) -> dict[str, Tensor]:
        """All of them."""
        return {name: self.tensor(name) for name in self.names}


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
        return PatchBasis(self.sides[name], TensorFile(self.folder / BASIS_FILE).tensor(name))


def fixed_bases(folder: Path, bases: Mapping[str, PatchBasis], processes: Processes = ALONE) -> dict[str, PatchBasis]:
    """The coordinates that the batches in the folder are in: those of its first start, whatever a new SVD rounds to."""
    if processes.is_first:
        for path in folder.iterdir():
            if UNFINISHED.fullmatch(path.name):  # what was being written when a run was killed
                path.unlink()
    if processes.is_first and not (folder / BASIS_FILE).is_file():
        save_tensors(folder / BASIS_FILE, {name: basis.q for name, basis in bases.items()})
    processes.barrier()
    file = TensorFile(folder / BASIS_FILE)
    return {name: PatchBasis(basis.side, file.tensor(name)) for name, basis in bases.items()}


def write_index(folder: Path, index: dict[str, Any], processes: Processes = ALONE) -> None:
    """Mark a measurement as complete, once every process has done its part."""
    processes.barrier()
    if processes.is_first:
        replace_file(folder / INDEX_FILE, json.dumps(index | {"crc32": _index_crc32(index)}) + "\n")
    processes.barrier()


def read_index(folder: Path) -> dict[str, Any]:
    """What :func:`write_index` wrote.

    Raises:
        StatisticsError: If it is something else.
    """
    file = folder / INDEX_FILE
    try:
        index: dict[str, Any] = json.loads(file.read_bytes())
        crc32 = index.pop("crc32", None)
        if crc32 not in {None, _index_crc32(index)}:
            raise ValueError("it is not what was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(file, error) from error
    return index


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors atomically, so that :class:`TensorFile` can tell whether they are what was written."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    sums = {name: zlib.crc32(tensor.numpy()) for name, tensor in ready.items()}  # type: ignore[arg-type]
    checks = {"file": path.name, "folder": path.absolute().parent.name, "crc32": sums}
    temporary = path.with_suffix(".part")
    save_file(ready, temporary, metadata={CHECKS: json.dumps(checks, sort_keys=True)})
    put_in_place(temporary, path)


@contextmanager
def writing_behind() -> Iterator[Callable[[Path, Mapping[str, Tensor]], None]]:
    """While open, files are written as :func:`save_tensors` does, while the caller computes what the next one holds.

    One at a time and in order: the yielded function waits for the file before, and raises what writing that one
    raised. The tensors must not be changed any more. At the end everything is written, or what writing raised is
    raised, even if the caller has raised something.
    """
    pending: Future[None] | None = None

    def save(path: Path, tensors: Mapping[str, Tensor]) -> None:
        nonlocal pending
        if pending is not None:
            pending.result()
        pending = writer.submit(save_tensors, path, tensors)

    with ThreadPoolExecutor(1, thread_name_prefix="statistics") as writer:
        try:
            yield save
        finally:
            if pending is not None:
                pending.result()


def _index_crc32(index: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(index, sort_keys=True).encode())


def _damaged(path: Path, error: Exception) -> StatisticsError:
    """What to say of a file that cannot be used."""
    why = (error.strerror if isinstance(error, OSError) else None) or str(error) or repr(error)
    return StatisticsError(
        f"{path} is missing or damaged ({why}). Remove the folder {path.parent}; the next run measures it again."
    )
