"""`python -m mlkv` is `mlkv`."""

from sweeps.cli import main

main()
