"""Keys and values of all rows, and attention over them, for a forward pass of flat tokens."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from math import prod
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from workers.engine.cache import Place

Window = int | None  # of a layer: how many positions back a token sees, its own included; None: all


class Read(NamedTuple):
    """The tokens of one row that a forward pass reads, after `start` positions that the row holds already.

    `wanted` are the indices of those whose states are returned. With `branches` the tokens are alternatives of these
    lengths, side by side: each goes on after `start` and sees what was there before and itself, not the others.
    """

    place: Place
    start: int
    tokens: Sequence[int]
    wanted: Sequence[int]
    branches: tuple[int, ...] = ()
    adapter: str | None = None


class KVStore:
    """Per arena and layer two tensors [slots, length, kv_heads, head_dim]; a `Storage`.

    shapes: of each layer that caches, its index to (kv_heads, head_dim).
    """

    def __init__(self, shapes: Mapping[int, tuple[int, int]], dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._shapes = shapes
        self._arenas: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}

    @property
    def token_bytes(self) -> int:
        return sum(2 * heads * width * self.dtype.itemsize for heads, width in self._shapes.values())

    def layer(self, length: int, layer: int) -> tuple[Tensor, Tensor]:
        return self._arenas[length][layer]

    def resize(self, length: int, slots: int) -> None:
        arena = self._arenas.setdefault(length, {})
        for layer, (heads, width) in self._shapes.items():  # layer by layer, so that little is held twice
            old = arena.pop(layer, ())
            # Zeros: a masked position weighs nothing, but nothing times an uninitialised NaN is NaN.
            new = [zeros((slots, length, heads, width), self.dtype, self.device) for _ in range(2)]
            for source, target in zip(old, new, strict=False):
                kept = min(len(source), slots)
                target[:kept] = source[:kept]
            arena[layer] = (new[0], new[1])

    def copy(self, source: Place, target: Place, tokens: int) -> None:
        for layer in self._shapes:
            pairs = zip(self.layer(source.length, layer), self.layer(target.length, layer), strict=True)
            for old, new in pairs:
                new[target.slot, :tokens] = old[source.slot, :tokens]

    def swap(self, one: Place, other: Place, tokens: int) -> None:
        for layer in self._shapes:
            for tensor in self.layer(one.length, layer):
                kept = tensor[one.slot, :tokens].clone()
                tensor[one.slot, :tokens] = tensor[other.slot, :tokens]
                tensor[other.slot, :tokens] = kept


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of zeros whose memory, on a CPU, goes back to the system with it: arenas that grew left a heap of holes.

    What was never written takes none.
    """
    size = prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS), dtype=dtype).view(shape)


class Target(NamedTuple):
    """Where an arena takes keys and values of the tokens: positions of its slots laid end to end."""

    length: int
    tokens: slice
    positions: Tensor


class Part(NamedTuple):
    """Tokens that attend in one product: one each of neighbouring rows, or several of one row."""

    length: int
    rows: slice
    tokens: slice
    keys: dict[Window, slice]
    masks: dict[Window, Tensor]  # additive, [rows, 1, 1 or tokens, keys]


class Batch:
    """The reads of one forward pass laid out flat: arena by arena, and single tokens of neighbouring rows together.

    ids, positions: [tokens], each token's id and position in its sequence. wanted: indices of the tokens that the
    reads want, in the caller's order. adapters, lengths: of each read, as they are laid out.
    """

    def __init__(self, reads: Sequence[Read], store: KVStore, windows: Collection[Window]) -> None:
        self._store, self._windows = store, windows
        laid_out = sorted(reads, key=lambda read: (read.place.length, len(read.tokens) > 1, read.place.slot))
        self.adapters = [read.adapter for read in laid_out]
        self.lengths = [len(read.tokens) for read in laid_out]
        first = dict(zip((read.place for read in laid_out), accumulate(self.lengths, initial=0), strict=False))
        self.ids = self._tensor([token for read in laid_out for token in read.tokens])
        self.positions = self._tensor([position for read in laid_out for position in positions_of(read)])
        self.wanted = self._tensor([first[read.place] + index for read in reads for index in read.wanted])
        self._parts = [self._part(rows, first[rows[0].place]) for rows in neighbours(laid_out)]
        self._targets = []
        for length, arena in groupby(laid_out, key=lambda read: read.place.length):
            slots = [(read.place.slot * length + read.start, read) for read in arena]
            flat = [slot + offset for slot, read in slots for offset in range(len(read.tokens))]
            start = first[slots[0][1].place]
            self._targets.append(Target(length, slice(start, start + len(flat)), self._tensor(flat)))

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Cache a layer's keys and values of the tokens, [tokens, kv_heads, head_dim].

        Finite ones: rows beside meet a slot's values with weight nothing, but nothing times infinity is NaN.
        """
        for target in self._targets:
            for cached, new in zip(self._store.layer(target.length, layer), (key, value), strict=True):
                cached.flatten(0, 1).index_copy_(0, target.positions, new[target.tokens].nan_to_num(0, 0, 0))

    def attend(self, layer: int, window: Window, query: Tensor, scale: float, softcap: float | None = None) -> Tensor:
        """Attend to all that each token sees of a layer. query: [tokens, heads, head_dim]; returns the same shape."""
        outputs = []
        for part in self._parts:
            keys, values = (
                cached[part.rows, part.keys[window]].transpose(1, 2) for cached in self._store.layer(part.length, layer)
            )
            outputs.append(attention(query[part.tokens], keys, values, part.masks[window], scale, softcap))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _part(self, reads: list[Read], first: int) -> Part:
        """One token each of neighbouring rows, or all the tokens of one row's read."""
        place, starts = reads[0].place, [read.start for read in reads]
        single = len(reads[0].tokens) == 1
        end = max(starts) + 1 if single else starts[0] + len(reads[0].tokens)
        keys, masks = {}, {}
        for window in self._windows:
            begin = max(0, min(starts) - window + 1) if window else 0
            keys[window] = slice(begin, end)
            masks[window] = self._mask(reads, begin, end, window)
        rows = slice(place.slot, place.slot + len(reads))
        return Part(place.length, rows, slice(first, first + sum(len(read.tokens) for read in reads)), keys, masks)

    def _mask(self, reads: list[Read], begin: int, end: int, window: Window) -> Tensor:
        """0 where a token sees a position of the slot, else -inf: [rows, 1, tokens of each, end - begin]."""
        device = self._store.device
        seen = torch.arange(begin, end, device=device)
        if branches := reads[0].branches:
            at = self._tensor(positions_of(reads[0]))
            branch = torch.repeat_interleave(self._tensor(branches))
            start = reads[0].start
            key_at = torch.cat([seen[: start - begin], at])
            allowed = key_at <= at[:, None]
            allowed[:, start - begin :] &= branch[:, None] == branch
            if window:
                allowed &= key_at > at[:, None] - window
            allowed = allowed[None]
        else:
            at = self._tensor([read.start for read in reads])[:, None, None]
            at = at + torch.arange(len(reads[0].tokens), device=device)[:, None]
            allowed = seen <= at
            if window:
                allowed &= seen > at - window
        mask = torch.zeros(allowed.shape, dtype=self._store.dtype, device=device)
        return mask.masked_fill_(~allowed, -torch.inf)[:, None]

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._store.device)


def positions_of(read: Read) -> list[int]:
    """Each token's position in its sequence."""
    return [read.start + offset for length in read.branches or (len(read.tokens),) for offset in range(length)]


def neighbours(reads: Sequence[Read]) -> Iterator[list[Read]]:
    """Runs of single tokens in consecutive slots of an arena; every longer read is by itself."""
    run: list[Read] = []
    for read in reads:
        follows = run and len(read.tokens) == len(run[-1].tokens) == 1
        if not follows or read.place != run[-1].place._replace(slot=run[-1].place.slot + 1):
            if run:
                yield run
            run = []
        run.append(read)
    if run:
        yield run


def attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float | None = None
) -> Tensor:
    """Attention of query heads that share key and value heads, without repeating the cache for them.

    query: [rows * n, heads, head_dim]; keys, values: [rows, kv_heads, length, head_dim]; mask: additive,
    [rows, 1, n, length]. Returns the shape of query.
    """
    rows, kv_heads, _, width = keys.shape
    n = mask.shape[2]
    group = query.shape[1] // kv_heads
    if n == 1:  # the heads of a group see the same positions: as many queries of one head
        grouped = query.view(rows, kv_heads, group, width)
    else:
        grouped = query.view(rows, n, kv_heads, group, width).permute(0, 2, 3, 1, 4).reshape(rows, kv_heads, -1, width)
        mask = mask.repeat(1, 1, group, 1)
    if softcap is None:
        output = scaled_dot_product_attention(grouped, keys, values, mask, scale=scale)
    else:  # Gemma 2, which no fused kernel serves
        weights = torch.tanh(grouped @ keys.transpose(-1, -2) * (scale / softcap)) * softcap + mask
        output = weights.softmax(-1, dtype=torch.float32).to(query.dtype) @ values
    if n == 1:
        return output.reshape(query.shape)
    return output.view(rows, kv_heads, group, n, width).permute(0, 3, 1, 2, 4).reshape(query.shape)
