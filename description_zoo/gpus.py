"""What a GPU can do at most, by its data sheet: dense products in bfloat16 and reads of its memory, per second."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Floating-point operations per second in bfloat16 without sparsity, bytes of memory, bytes read per second."""

    flops: float
    memory: float
    bandwidth: float
    source: str


GPUS = {
    "a100": Gpu(312e12, 80e9, 2.039e12, "NVIDIA A100 80GB SXM data sheet"),
    "h100": Gpu(989.5e12, 80e9, 3.35e12, "NVIDIA H100 SXM data sheet"),
    "h200": Gpu(989.5e12, 141e9, 4.8e12, "NVIDIA H200 SXM data sheet"),
    "b200": Gpu(2250e12, 180e9, 7.7e12, "NVIDIA DGX B200 data sheet, one of eight"),
    "l40s": Gpu(362e12, 48e9, 0.864e12, "NVIDIA L40S data sheet"),
    "rtx-4090": Gpu(165.2e12, 24e9, 1.008e12, "NVIDIA Ada architecture paper, float32 accumulation"),
    "mi300x": Gpu(1307.4e12, 192e9, 5.3e12, "AMD Instinct MI300X data sheet"),
}


def gpu_named(name: str) -> Gpu | None:
    """The GPU of a device's name, as torch.cuda.get_device_name gives it ("NVIDIA H100 80GB HBM3"); None for one that
    is not in the table, or that the maker sells slower under such a name (PCIe, NVL, Laptop)."""
    words = name.lower().replace("-", " ").split()
    if {"pcie", "nvl", "laptop"} & {*words}:
        return None
    return next((gpu for key, gpu in GPUS.items() if set(key.split("-")) <= {*words}), None)
