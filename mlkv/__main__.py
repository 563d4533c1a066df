"""The `mlkv` command, also as `python -m mlkv`. It starts in this package, as `sweeps` is the name of another one too
(PyPI's, which W&B's extra installs): ours is found first, or the other one is named in one line."""

from __future__ import annotations

import sys

from mlkv.own_packages import ROOT, overwritten


def main() -> None:
    if problem := overwritten(ROOT):
        print(f"mlkv: {problem}", file=sys.stderr)
        sys.exit(2)
    from sweeps.cli import main as command

    command()


if __name__ == "__main__":
    main()
