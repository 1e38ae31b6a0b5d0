"""Freed memory stays in the process, unless the user says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

GIVEN_BACK = """
import sys
import torch
from sst_merge.allocator import keep_freed_memory

def resident() -> int:
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

was_set = keep_freed_memory()
tensor = torch.ones(50_000_000)  # 200 MB
before = resident()
del tensor
print(was_set, before - resident() > 150_000)  # kB
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library has mallopt")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [({}, "True False"), ({"MALLOC_ARENA_MAX": "2"}, "False True"), ({"GLIBC_TUNABLES": ""}, "False True")],
    ids=str,
)
def test_freed_memory_is_kept_unless_the_user_has_settings(setting: dict[str, str], expected: str) -> None:
    others = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    output = subprocess.run(
        [sys.executable, "-c", GIVEN_BACK], env={**others, **setting}, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == expected
