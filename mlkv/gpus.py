"""What GPUs can do at most, from NVIDIA's data sheets. No torch: plans and advice count with it."""

from __future__ import annotations

PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
"""Dense bf16 FLOP/s by a part of the device's name, the longest that fits; without sparsity."""
BANDWIDTHS = {
    "B200": 8.0e12,
    "H200": 4.8e12,
    "H100 PCIe": 2.0e12,
    "H100 NVL": 3.9e12,
    "H100": 3.35e12,
    "A100": 2.039e12,
    "A40": 0.696e12,
    "A10": 0.6e12,
    "L40S": 0.864e12,
    "L4": 0.3e12,
    "RTX 4090": 1.008e12,
    "RTX 3090": 0.936e12,
}
"""Bytes a second of the GPU's memory, by the same names; of several variants of a GPU that of the fastest."""
