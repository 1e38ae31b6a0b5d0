"""Files that are there whole or not at all, and what a killed run leaves of others."""

import os
import re
import secrets
from pathlib import Path

UNFINISHED = re.compile(r"\.(adapter-[a-z0-9_]{8}|.+-[0-9a-f]{16}|tmp[A-Za-z0-9]{6})")
"""Names under which the adapter, other files and those of safetensors (the last) are written before they get their own,
and folders removed."""


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a finished file, or folder of files, once its bytes are on the disk: a power cut leaves no torn one."""
    for file in sorted(temporary.iterdir()) if temporary.is_dir() else [temporary]:
        with file.open("r+b") as opened:
            os.fsync(opened.fileno())
    temporary.replace(path)


def replace_file(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all, even if the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are readable by their owner only, whatever the umask says.
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
        put_in_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
