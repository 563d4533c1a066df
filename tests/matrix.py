"""Every family and trap in every layout, the error of each cell: the tables are in tests/support/matrix.py.

python -m tests.matrix      # as `python benchmarks/families.py --error`
"""

from __future__ import annotations

from tests.support.matrix import FAMILY_CONFIGS, LAYOUTS, SHAPES, TRAPS
from tests.support.parity import errors_table

__all__ = ["FAMILY_CONFIGS", "LAYOUTS", "SHAPES", "TRAPS"]

if __name__ == "__main__":
    print(errors_table())
