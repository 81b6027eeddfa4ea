"""Linear maps of inference, without a bias, in the form that the hardware multiplies fastest.

oneDNN lays bfloat16 weights out anew for every product that it is given plain ones; packed once, a product of few
rows reads them at the memory's speed (measured: 13 ms against 21 for Gemma 3's output matrix).
"""

import ctypes
import platform
import sys
from mmap import MADV_DONTNEED, PAGESIZE
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

ROWS_IN_MEMORY = 1024  # of an embedding in a file
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


class Embedding:
    """The rows of a matrix for some ids. weight: [vocabulary, width]; ids: [tokens]; returns [tokens, width].

    stays: whether somebody else reads all of it, too. Else what was read of a mapped file leaves memory now and then:
    with each row come 64 KiB.
    """

    def __init__(self, weight: Tensor, *, stays: bool) -> None:
        self._weight = weight
        self._leaves = not stays and in_file(weight)
        self._read = 0

    def __call__(self, ids: Tensor) -> Tensor:
        rows = self._weight[ids]
        self._read += len(ids)
        if self._leaves and self._read > ROWS_IN_MEMORY:
            self._read = 0
            leave_memory(self._weight)
        return rows


def in_file(weight: Tensor) -> bool:
    """Whether a tensor's memory is a mapped file's: pages that leave it are found there again."""
    if weight.device.type != "cpu" or sys.platform != "linux":
        return False
    address = weight.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *_ = line.split()
        begin, end = (int(place, 16) for place in span.split("-"))
        if begin <= address < end:
            return inode != "0"
    return False


def leave_memory(weight: Tensor) -> None:
    """Have the pages of a tensor `in_file` leave this process's memory; what was written to them would be lost."""
    begin = weight.data_ptr() // PAGESIZE * PAGESIZE
    length = weight.data_ptr() + weight.nbytes - begin
    ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), MADV_DONTNEED)


def page_out(weight: Tensor) -> None:
    """Have weights that are not read from now on leave memory, where they are a file's."""
    if in_file(weight):
        leave_memory(weight)


def packable(weight: Tensor) -> bool:
    """Whether oneDNN has fast kernels for this weight on this machine."""
    x86 = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
    return x86 and weight.device.type == "cpu" and weight.dtype == torch.bfloat16


def fastest(weight: Tensor) -> Linear | PackedLinear:
    """The fastest map of the same numerics."""
    return PackedLinear(weight) if packable(weight) else Linear(weight)
