"""Linear maps of inference, without a bias, in the form that the hardware multiplies fastest.

oneDNN lays bfloat16 weights out anew for every product that it is given plain ones; packed once, a product of few
rows reads them at the memory's speed (measured: 13 ms against 21 for Gemma 3's output matrix).
"""

import ctypes
import platform
import sys
from mmap import PAGESIZE

import torch
from torch import Tensor
from torch.nn.functional import linear

MADV_PAGEOUT = 21  # of madvise(2); a kernel that does not know it does nothing
ZERO_POINT = 128
PACKED_FOR = 16  # rows that the packed layout is chosen for; others are multiplied with the same layout


class Linear:
    """y = x Wᵀ with W as it is. weight: [d_out, d_in]; x: [tokens, d_in]; returns [tokens, d_out] in x's dtype."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self._weight)


class PackedLinear:
    """The same with bfloat16 weights in oneDNN's own layout."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR)
        page_out(weight)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, None, "none", [], "")


class Int8Linear:
    """Weights in 8 bits with a scale per output channel, activations in 8 bits with a scale per token; float32 out.

    Nothing but a token's own values enters its scale, so rows stay independent of each other. Activations are unsigned
    with a zero point: without AMX, oneDNN multiplies signed ones by its reference code, hundreds of times slower.
    """

    def __init__(self, weight: Tensor) -> None:
        scales = weight.abs().amax(1).float().clamp_(min=1e-12) / 127
        rounded = torch.empty(weight.shape, dtype=torch.int8)
        for piece in range(0, len(weight), 16384):  # a float32 copy of all of it would be the largest tensor of all
            rows = slice(piece, piece + 16384)
            rounded[rows] = (weight[rows].float() / scales[rows, None]).round_().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._scales = scales
        self._zeros = torch.zeros(len(scales), dtype=torch.int32)
        page_out(weight)

    def __call__(self, x: Tensor) -> Tensor:
        scale = torch.linalg.vector_norm(x, torch.inf, -1, keepdim=True, dtype=torch.float32).clamp_(min=1e-12) / 127
        rounded = (x / scale).round_().add_(ZERO_POINT).to(torch.uint8)
        weights = self._weight, self._scales, self._zeros
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, ZERO_POINT, *weights, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return y.mul_(scale)


def page_out(weight: Tensor) -> None:
    """Have a tensor that is seldom read from now on leave memory: that of a mapped file is read from there again."""
    if weight.device.type == "cpu" and sys.platform == "linux":
        begin = weight.data_ptr() // PAGESIZE * PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(weight.nbytes), MADV_PAGEOUT)


def packable(weight: Tensor) -> bool:
    """Whether oneDNN has fast kernels for this weight on this machine."""
    x86 = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
    return x86 and weight.device.type == "cpu" and weight.dtype == torch.bfloat16


def fastest(weight: Tensor) -> Linear | PackedLinear:
    """The fastest map of the same numerics."""
    return PackedLinear(weight) if packable(weight) else Linear(weight)
