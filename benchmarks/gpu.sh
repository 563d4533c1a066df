#!/usr/bin/env bash
# The benchmarks that need a GPU, on a machine with CUDA: sets up .venv for it, runs them, and keeps what they print in benchmarks/results.
# Needs Python, git and about 10 GB of disk; PYTHON names an interpreter that has torch with CUDA already, and nothing is installed then.
set -euo pipefail
cd "$(dirname "$0")/.."

nvidia-smi >/dev/null || { echo "gpu.sh: no GPU of NVIDIA's is seen here" >&2; exit 2; }
if [ -z "${PYTHON:-}" ]; then
    python3 -m venv .venv-cuda
    .venv-cuda/bin/python -m pip install --quiet --requirement requirements-cuda.lock
    .venv-cuda/bin/python -m pip install --quiet --no-deps --editable .
    PYTHON=.venv-cuda/bin/python
fi
exec "$PYTHON" -m benchmarks --run --gpu --table
