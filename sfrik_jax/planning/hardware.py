"""Rates of accelerators by their makers' data sheets. None of them is measured here."""

from typing import NamedTuple


class Hardware(NamedTuple):
    """One device, and how it hears of others.

    Attributes:
      kind: as JAX names the device.
      flop: dense bfloat16 FLOP/s.
      traffic: bytes/s to and from memory.
      memory: bytes.
      link: bytes/s that a device receives from those of its own island.
      island: so many devices share the fast links.
      beyond: bytes/s that it receives from another island.
      source: the data sheet.
    """

    kind: str
    flop: float
    traffic: float
    memory: float
    link: float
    island: int
    beyond: float
    source: str

    def network(self, devices: int) -> float:
        """Bytes/s that each of so many devices receives."""
        return self.link if devices <= self.island else self.beyond


_NVIDIA = "nvidia.com/en-us/data-center"
_TPU = "cloud.google.com/tpu/docs"
# NVLink's figure counts both directions, so that half of it is received. Between
# machines: one InfiniBand port for each GPU, as in the makers' DGX (400 and 200
# Gbit/s). Of a TPU all links of a chip; a pod has no slower ones.
SHEETS = {
    "h200": Hardware(
        "NVIDIA H200", 989e12, 4.8e12, 141e9, 450e9, 8, 50e9, f"{_NVIDIA}/h200"
    ),
    "h100": Hardware(
        "NVIDIA H100 80GB HBM3",
        989e12,
        3.35e12,
        80e9,
        450e9,
        8,
        50e9,
        f"{_NVIDIA}/h100",
    ),
    "h100-pcie": Hardware(
        "NVIDIA H100 PCIe", 756e12, 2.0e12, 80e9, 64e9, 8, 50e9, f"{_NVIDIA}/h100"
    ),
    "a100": Hardware(
        "NVIDIA A100-SXM4-80GB",
        312e12,
        2.039e12,
        80e9,
        300e9,
        8,
        25e9,
        f"{_NVIDIA}/a100",
    ),
    "a100-40gb": Hardware(
        "NVIDIA A100-SXM4-40GB",
        312e12,
        1.555e12,
        40e9,
        300e9,
        8,
        25e9,
        f"{_NVIDIA}/a100",
    ),
    "tpu-v4": Hardware(
        "TPU v4", 275e12, 1.228e12, 32e9, 300e9, 4096, 300e9, f"{_TPU}/v4"
    ),
    "tpu-v5e": Hardware(
        "TPU v5 lite", 197e12, 0.819e12, 16e9, 200e9, 256, 200e9, f"{_TPU}/v5e"
    ),
}


def of_kind(kind: str) -> Hardware | None:
    """The data sheet of a device as JAX names it, where there is one here."""
    return next((sheet for sheet in SHEETS.values() if sheet.kind == kind), None)
