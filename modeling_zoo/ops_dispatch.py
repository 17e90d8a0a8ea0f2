"""What a faster form asks of its input and of this machine before it looks at a size: in a traced graph a comparison of
sizes would become a condition of the graph."""

import platform

import torch

HALF_DTYPES = (torch.bfloat16, torch.float16)


def is_traced() -> bool:
    """Whether the running code is being compiled, exported or traced."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def refuse_empty(name: str, given: torch.Tensor) -> None:
    """Raises ValueError for tokens or embeddings `[B, T, ...]` of no row or no token; a traced graph asks nothing."""
    if not is_traced() and 0 in given.shape[:2]:
        raise ValueError(
            f"{name} of shape {tuple(given.shape)} hold no token: give at least one row of at least one token."
        )


def has_values(x: torch.Tensor) -> bool:
    """Whether a decision may depend on the numbers in `x`: not in a traced graph, not on the meta device."""
    return x.device.type != "meta" and not is_traced()


def is_eager_cpu_inference(x: torch.Tensor) -> bool:
    """Whether `x` is computed on a CPU, at once, with no gradient recorded."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not (traced or torch.is_grad_enabled()) and x.device.type == "cpu"


def is_eager_cuda(x: torch.Tensor) -> bool:
    """Whether `x` is computed on a CUDA device, at once."""
    # Where vLLM traces a layer, x stands for a tensor and cannot be asked where it is.
    return isinstance(x, torch.Tensor) and x.device.type == "cuda" and not is_traced()


def is_emulated(dtype: torch.dtype) -> bool:
    """Whether this machine's CPU lacks units for products in `dtype`; False on processors that were not measured."""
    if dtype not in HALF_DTYPES or platform.machine() not in ("x86_64", "AMD64"):
        return False
    # An older torch that cannot say counts as a CPU without units.
    has_units = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return not (dtype == torch.bfloat16 and has_units())


def use_fp32_gemm(x: torch.Tensor) -> bool:
    """Whether products with `x` are better computed in float32: in inference on a CPU that emulates its dtype, where
    autocast does not choose the dtype."""
    if x.dtype not in HALF_DTYPES or not is_eager_cpu_inference(x):
        return False
    return not torch.is_autocast_enabled("cpu") and is_emulated(x.dtype)


def is_recent_cuda(device: torch.device) -> bool:
    """Whether `device` is one of NVIDIA that multiplies bfloat16 (compute capability 8); True for one that is only made
    believe, where torch has no CUDA at all."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.version.cuda is None or torch.cuda.get_device_properties(device).major >= 8


def has_wide_products(x: torch.Tensor) -> bool:
    """Whether `bmm` gives products of `x` in float32, as its units sum them, for a dtype half as wide; in inference."""
    return x.dtype in HALF_DTYPES and is_recent_cuda(x.device) and not torch.is_grad_enabled()
