"""`python -m sweeps.cli` is `mlkv`."""

from sweeps.cli import main

main()
