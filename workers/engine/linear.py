"""Linear maps of inference, without a bias, in the form that the hardware multiplies fastest.

oneDNN lays weights out anew for every product that it is given plain ones; packed once, a product of few rows reads
them at the memory's speed. Measured for Gemma 3's output matrix: one row of bfloat16 13 ms against 21; 16 rows of
float32 on a processor that has no bfloat16 62 ms against 258, and in 8 bits 25.
"""

import ctypes
import platform
from mmap import PAGESIZE
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

MADV_DONTNEED = 4  # of Linux's madvise(2)
MAPS = Path("/proc/self/maps")
ROWS_PER_EVICTION = 1024
ZERO_POINT = 128
PACKED_FOR = 16  # rows that the packed layout is chosen for; others are multiplied with the same layout


class Linear:
    """y = x Wᵀ with W as it is. weight: [d_out, d_in]; x: [tokens, d_in]; returns [tokens, d_out] in x's dtype."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self._weight)


class PackedLinear:
    """The same with the weights in oneDNN's own layout."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, None, "none", [], "")


class Int8Linear:
    """Weights in 8 bits with a scale per output channel, activations in 8 bits with a scale per token; float32 out.

    Nothing but a token's own values enters its scale, so rows stay independent of each other. Activations are unsigned
    with a zero point: without AMX, oneDNN multiplies signed ones by its reference code, hundreds of times slower.
    """

    def __init__(self, weight: Tensor) -> None:
        scales, rounded = torch.empty(len(weight)), torch.empty(weight.shape, dtype=torch.int8)
        for piece in range(0, len(weight), 16384):  # a copy of all of it would be the largest tensor of all
            rows = slice(piece, piece + 16384)
            exact = weight[rows].float()
            scales[rows] = exact.abs().amax(1).clamp_(min=1e-12) / 127
            rounded[rows] = (exact / scales[rows, None]).round_().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._scales = scales
        self._zeros = torch.zeros(len(scales), dtype=torch.int32)

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

    evicts: whether rows leave memory again after some were read: the kernel maps up to 64 KiB of a file around each.
    """

    def __init__(self, weight: Tensor, *, evicts: bool) -> None:
        self._weight = weight
        self._evicts = evicts
        self._read = 0

    def __call__(self, ids: Tensor) -> Tensor:
        rows = self._weight[ids]
        self._read += len(ids)
        if self._evicts and self._read > ROWS_PER_EVICTION:
            self._read = 0
            evict(self._weight)
        return rows


class MappedFiles:
    """The memory of this process, as it is now, that is mapped files'."""

    def __init__(self) -> None:
        lines = MAPS.read_text().splitlines() if MAPS.is_file() else []  # elsewhere than on Linux, everything stays
        spans = [(line.split()[0].split("-"), line.split()[4]) for line in lines]
        self._spans = [(int(begin, 16), int(end, 16)) for (begin, end), inode in spans if inode != "0"]

    def hold(self, weight: Tensor) -> bool:
        """Whether a tensor is a part of one."""
        return weight.device.type == "cpu" and any(begin <= weight.data_ptr() < end for begin, end in self._spans)

    def evict(self, weight: Tensor) -> None:
        """Have a tensor that is a part of one, and is not needed from now on, leave memory."""
        if self.hold(weight):
            evict(weight)


def evict(weight: Tensor) -> None:
    """Have a tensor in a mapped file leave memory; it is read from there again, so what was written to it is lost."""
    begin = weight.data_ptr() // PAGESIZE * PAGESIZE
    length = weight.data_ptr() + weight.nbytes - begin
    ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), MADV_DONTNEED)


def packable(weight: Tensor) -> bool:
    """Whether oneDNN has fast kernels for this weight on this machine."""
    x86 = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()
    return x86 and weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float32)


def multiplies_int8(device: torch.device) -> bool:
    """Whether this is a CPU with instructions for products of 8 bits."""
    if device.type != "cpu":
        return False
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_vnni") or abilities.get("amx_int8"))


def fastest(weight: Tensor) -> Linear | PackedLinear:
    """The fastest map of the same numerics."""
    return PackedLinear(weight) if packable(weight) else Linear(weight)
