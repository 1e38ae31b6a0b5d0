"""SST-Merge: merge a utility LoRA and a safety LoRA, and measure honestly what that gained and what it cost."""

from importlib.metadata import version

__version__ = version("sst-merge")
