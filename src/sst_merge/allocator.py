"""How the C library hands out host memory."""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of ``mallopt`` (malloc.h of the GNU C library)."""
LARGEST, LARGE = 2_000_000_000, 32 * 1024 * 1024
"""Bytes: the parameters are 32-bit integers, and older versions of the library refuse thresholds above 32 MiB."""


def keep_freed_memory() -> bool:
    """Keep freed memory in the process for the next tensor, in place of giving it back and asking for it again.

    By default the GNU C library maps every large tensor anew, and the kernel clears each page at its first use: several
    times the work on the tensor itself, and more on virtual machines that give unused pages back to their host.

    Returns:
        Whether anything was set. Other C libraries, and settings of the user (``MALLOC_...``, ``GLIBC_TUNABLES``), are
        left as they are.
    """
    is_users = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if sys.platform != "linux" or is_users:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # A trim threshold by itself would do harm: with it the library no longer raises the other threshold by itself.
    if mallopt is None or not (mallopt(MMAP_THRESHOLD, LARGEST) or mallopt(MMAP_THRESHOLD, LARGE)):
        return False
    return bool(mallopt(TRIM_THRESHOLD, LARGEST))
