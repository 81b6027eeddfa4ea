"""Keys and values of the batch: one slot per row, each filled to its own length."""

import torch
from torch import Tensor

BLOCK = 256  # slots grow by so many positions at a time


def blocks(length: int) -> int:
    """`length` rounded up to whole blocks."""
    return -(-length // BLOCK) * BLOCK


class KVCache:
    """Per layer a pair of tensors [slots, kv_heads, length, head_dim], of which the first rows are in use.

    transformers' attention modules call `update` as they would on their own cache. Positions are written by index, so
    rows of different lengths stand side by side without padding, and attention reads a view of what was written
    before: nothing is concatenated or copied in a step. Memory is taken when it is needed, up to `capacity` positions.

    shapes: of each layer that caches, its index to (kv_heads, head_dim).
    """

    def __init__(
        self, shapes: dict[int, tuple[int, int]], dtype: torch.dtype, device: torch.device, capacity: int
    ) -> None:
        self.shapes = shapes
        self.dtype = dtype
        self.device = device
        self.capacity = capacity
        self.slots = 0
        self.length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of at most `length` positions, keeping what the rows hold."""
        if rows <= self.slots and length <= self.length:
            return
        length = blocks(length)
        slots = max(rows, min(1 << (rows - 1).bit_length(), self.capacity // length))
        kept_slots, kept_length = min(slots, self.slots), min(length, self.length)
        for layer, (heads, width) in self.shapes.items():
            old = self._layers.pop(layer, ())
            # Zeros: a masked position weighs nothing, but nothing times an uninitialised NaN is NaN.
            new = [torch.zeros(slots, heads, length, width, dtype=self.dtype, device=self.device) for _ in range(2)]
            for source, target in zip(old, new, strict=False):
                target[:kept_slots, :, :kept_length] = source[:kept_slots, :, :kept_length]
            self._layers[layer] = (new[0], new[1])
        self.slots, self.length = slots, length

    def begin(self, row: int, positions: Tensor, length: int) -> None:
        """Aim the next forward pass at rows from `row` on. positions: [rows, tokens]; attention reads `length`."""
        rows = positions.shape[0]
        self._view = (slice(row, row + rows), slice(None), slice(length))
        self._target = (torch.arange(row, row + rows, device=self.device)[:, None], slice(None), positions)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values, [rows, kv_heads, tokens, head_dim]; returns views of all up to now."""
        cached_keys, cached_values = self._layers[layer_idx]
        cached_keys[self._target] = keys.transpose(1, 2)
        cached_values[self._target] = values.transpose(1, 2)
        return cached_keys[self._view], cached_values[self._view]

    def move(self, source: int, target: int, length: int) -> None:
        """Put the first `length` positions of row `source` into row `target`."""
        for pair in self._layers.values():
            for tensor in pair:
                tensor[target, :, :length] = tensor[source, :, :length]

    def reset(self) -> None:
        """Give all memory back."""
        self._layers.clear()
        self.slots = self.length = 0


class ShapeProbe:
    """Stands in for the cache during one forward pass and notes each layer's shape."""

    def __init__(self) -> None:
        self.shapes: dict[int, tuple[int, int]] = {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        self.shapes[layer_idx] = (keys.shape[1], keys.shape[3])
        return keys, values
