"""``python -m sst_merge.cli``."""

from sst_merge.cli import main

main()
