"""The run folder: the only module that knows its file names, and what may be reused.

A folder belongs to one resolved configuration, one set of inputs and one version of the program. Opened with
anything else it refuses, naming what differs; opened with the same it resumes.
"""

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sst_merge.atomic import UNFINISHED, replace_file
from sst_merge.errors import RunFolderError
from sst_merge.section import file_stem

LONGEST_VALUE = 100
"""Characters of a value in a message about what differs."""
VERSIONED = ("sst-merge", "torch", "transformers", "peft", "numpy")


def canonical_sha256(value: Any) -> str:
    """SHA-256 of a value's canonical JSON (sorted keys, no spaces), 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class RunFolder:
    """One run's files."""

    path: Path

    lock_file = property(lambda self: self.path / ".lock")
    manifest_file = property(lambda self: self.path / "manifest.json")
    plan_file = property(lambda self: self.path / "plan.json")
    statistics = property(lambda self: self.path / "statistics")
    adapter = property(lambda self: self.path / "adapter")
    diagnostics_file = property(lambda self: self.path / "diagnostics.json")
    scores = property(lambda self: self.path / "scores")
    safety_tax_file = property(lambda self: self.path / "safety_tax.json")
    results_file = property(lambda self: self.path / "results.json")
    html_report = property(lambda self: self.path / "report.html")
    markdown_report = property(lambda self: self.path / "report.md")
    looks_file = property(lambda self: self.path / "looks.jsonl")

    def scores_file(self, arm: str, task: str) -> Path:
        """Samples of one arm on one task, one JSON object a line."""
        return self.scores / arm / f"{file_stem(task)}.jsonl"

    def arm_file(self, arm: str) -> Path:
        """What was evaluated as this arm: hashes, norms, probe."""
        return self.scores / arm / "arm.json"

    def probe_file(self, arm: str) -> Path:
        """Log-probabilities of the next token on the probe prompts."""
        return self.scores / arm / "probe.safetensors"

    def manifest(self) -> dict[str, Any]:
        """The manifest as written.

        Raises:
            RunFolderError: If there is none, or it is damaged; a key that it lacks is told when it is asked for.
        """
        if not self.manifest_file.is_file():
            raise RunFolderError(f"{self.path} is no run folder: it has no manifest.json. Run: sst-merge run FILE")
        return _read_fields(self.manifest_file, "Throw the run away: sst-merge run FILE --replace")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder if need be, and keep other runs out until this one has ended, be it killed.

        Raises:
            RunFolderError: If another run works in it, or it holds something that is no run, or cannot be written.
        """
        self._refuse_what_is_no_run()
        lock = FileLock(self.lock_file, timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise RunFolderError(
                f"output: another run is working in {self.path}. Wait until it has ended, or choose another folder."
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._sweep()
            yield
        finally:
            if os.name == "posix":  # elsewhere a held file cannot be removed, and release() does it
                self.lock_file.unlink(missing_ok=True)  # who waits for the removed file sees that and makes a new one
            lock.release()

    def _sweep(self) -> None:
        """Remove what a killed run had not finished to write or to remove.

        Statistics are left alone: another run may have them as its store.
        """
        for path in sorted(self.path.rglob(".*")):
            if UNFINISHED.fullmatch(path.name) and self.statistics not in path.parents and path.exists():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def open(
        self, identity: dict[str, Any], *, command: str, replace: bool = False, reusable: Collection[Path] = ()
    ) -> None:
        """Create the folder, or check that it belongs to the same run.

        Args:
            identity: Resolved configuration and hashes of inputs; everything that decides the numbers.
            command: What the user typed, for the record.
            replace: Throw an existing run away.
            reusable: Statistics that the new run would measure again, and that stay.

        Raises:
            RunFolderError: If the folder holds another run, something that is no run, or cannot be written.
        """
        self._refuse_what_is_no_run()
        identity = {**identity, "versions": versions()}
        if replace and self.manifest_file.is_file():
            self._remove_all_but({self.lock_file, self.manifest_file, self.looks_file, *reusable})
        elif self.manifest_file.is_file() and self._belongs_to(identity):
            return
        identity = json.loads(json.dumps(identity, default=str))
        manifest = {
            "schema": "sst-merge/manifest/1",
            **identity,
            "identity_sha256": canonical_sha256(identity),
            "command": command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {"platform": platform.platform(), "processor": _processor(), "cpu_count": os.cpu_count()},
            "timings_seconds": {},
            "fallbacks": [],
        }
        try:
            self.write_json(self.manifest_file, manifest)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> Exception:
        """What to raise; a full disk is the machine's fault, and told as such."""
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return error
        return RunFolderError(f"output: {self.path} cannot be written ({error.strerror}).")

    def _remove_all_but(self, kept: Collection[Path]) -> None:
        """Empty the folder. The manifest is to stay until there is a new one: without it this is no run's folder.

        Neither are looks removed: one at the test samples is not undone by throwing its numbers away.
        """
        kept = {path.resolve() for path in kept if path.exists()}
        above = {folder for path in kept for folder in path.parents}
        folders = [self.path]
        for folder in folders:
            for path in sorted(folder.iterdir()):
                if path.is_symlink() or not path.is_dir():
                    if path.resolve() not in kept:
                        path.unlink()
                elif path.resolve() in above:
                    folders.append(path)
                elif path.resolve() not in kept:
                    # Whole or gone: of a folder that lacks some files nobody could say what it was.
                    gone = path.rename(path.with_name(f".{path.name}-{secrets.token_hex(8)}"))
                    shutil.rmtree(gone)

    def refuse_foreign(self, identity: dict[str, Any]) -> None:
        """Refuse what :meth:`open` would refuse, and write nothing.

        Raises:
            RunFolderError: If the folder holds another run, or something that is no run.
        """
        self._refuse_what_is_no_run()
        if self.manifest_file.is_file():
            self._belongs_to({**identity, "versions": versions()})

    def _refuse_what_is_no_run(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"output: {self.path} is a file, not a folder.")
        unfinished = (self.lock_file.name, f".{self.manifest_file.name}-")  # a killed run's first files
        if (
            self.path.exists()
            and not self.manifest_file.is_file()
            and not all(file.name.startswith(unfinished) for file in self.path.iterdir())
        ):
            raise RunFolderError(f"output: {self.path} holds other files and no run. Choose an empty or a new folder.")

    def _belongs_to(self, identity: dict[str, Any]) -> bool:
        """Whether this run goes on here; if not, there is a plan of another one and no work of it that would be lost.

        Statistics are none: they are kept under what they depend on, so another run finds its own or measures it.

        Raises:
            RunFolderError: If there is work of another run.
        """
        if any(path.exists() for path in (self.adapter, self.diagnostics_file, self.scores)):
            self.check(identity)
            return True
        return self.statistics.exists() and not self._differences(identity)

    def _differences(self, identity: dict[str, Any]) -> list[str]:
        identity = json.loads(json.dumps(identity, default=str))
        stored = self.manifest()
        return differences({key: stored.get(key) for key in identity}, identity)

    def check(self, identity: dict[str, Any]) -> None:
        """Refuse to go on with a folder that belongs to another run.

        Raises:
            RunFolderError: Naming what differs.
        """
        if found := self._differences(identity):
            raise RunFolderError(
                f"{self.path} was made with other settings or inputs; nothing was overwritten.\n"
                + "\n".join(found)
                + "\n  Repeat the options that it was made with, use another output folder, or throw the old run away: "
                "sst-merge run ... --replace"
            )

    def identity_sha256(self) -> str:
        """Hash of configuration, inputs and versions: the run's name in every report."""
        return self.manifest()["identity_sha256"]

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds spent inside to the manifest; interrupted time is not counted."""
        start = time.monotonic()
        yield
        manifest = self.manifest()
        spent = manifest["timings_seconds"].get(stage, 0.0) + time.monotonic() - start
        manifest["timings_seconds"][stage] = round(spent, 1)
        self.write_json(self.manifest_file, manifest)

    def write_json(self, path: Path, value: Any) -> None:
        """Write JSON atomically; NaN and infinity are errors, not text."""
        replace_file(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False, default=str) + "\n")

    def read_json(self, path: Path) -> Any:
        """Read a JSON file of the run.

        Raises:
            RunFolderError: If it is missing or damaged; a key that it lacks is told when it is asked for.
        """
        if not path.is_file():
            raise RunFolderError(f"{path} is missing: an earlier stage has not run. Run: sst-merge run FILE")
        return _read_fields(path, "Remove it, and make it again: sst-merge run FILE")


class _Fields(dict[str, Any]):
    """A JSON object out of a file, where a key that is not there is a damage of the file."""

    def __init__(self, fields: dict[str, Any], file: Path, remedy: str) -> None:
        super().__init__(fields)
        self._file, self._remedy = file, remedy

    def __missing__(self, key: str) -> Any:
        raise RunFolderError(f"{self._file} is damaged: it has no {key}. {self._remedy}")


def _read_fields(file: Path, remedy: str) -> Any:
    """A JSON object; ``remedy`` says what to do if the file is damaged.

    Raises:
        RunFolderError: If it is.
    """
    try:
        fields = json.loads(file.read_text(encoding="utf-8"), object_hook=partial(_Fields, file=file, remedy=remedy))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{file} is damaged: {error}. {remedy}") from error
    if not isinstance(fields, dict):
        raise RunFolderError(f"{file} is damaged: it holds no keys and values. {remedy}")
    return fields


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    return {name: version(name) for name in VERSIONED} | {"python": platform.python_version()}


def require_free_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Refuse to start what will not fit.

    Raises:
        RunFolderError: If the file system has less free space than needed.
    """
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise RunFolderError(
            f"{what} need {needed_bytes / 1e9:.2f} GB, but {existing} has {free / 1e9:.2f} GB free. "
            "Free some space, or set output to another disk."
        )


def _processor() -> str:
    """Name of the CPU, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lines of a message that name what differs between two records, at most twelve."""
    return [f"  {key}   {_short(old)} then, {_short(new)} now" for key, old, new in _differences(then, now)][:12]


def _short(value: Any) -> str:
    """A value in a message: of a hash and of a long text the beginning."""
    text = "not given" if value is None else str(value)
    if re.fullmatch(r"[0-9a-f]{64}", text):
        return text[:12]
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def _differences(then: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Leaves in which two nested values differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in sorted(then.keys() | now.keys()):
            yield from _differences(then.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif isinstance(then, list) and isinstance(now, list):
        for number, (old, new) in enumerate(zip_longest(then, now)):
            yield from _differences(old, new, f"{key}.{number}")
    elif then != now:
        yield key, then, now
