"""A LoRA adapter (arXiv:2106.09685) for each row of a batch, loaded from PEFT folders while the engine runs.

All adapters of a batch stand side by side, so that each linear map costs one pair of products however many there are:
the batch of S-LoRA (arXiv:2311.03285) and Punica (arXiv:2310.18547), with a mask in place of their kernels.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from math import inf, sqrt
from pathlib import Path
from threading import Condition, Lock
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import pad

from workers.engine.linear import Linear, PackedLinear, fastest
from workers.engine.patterns import Patterns
from workers.engine.threads import aside
from workers.protocols import AdapterStats, Refused

CONFIG, WEIGHTS, META = "adapter_config.json", "adapter_model.safetensors", "meta.json"
NAME = re.compile(r"[^@]+@([0-9a-f]{16})")
WEIGHT = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")

MAX_JSON = 2**20  # bytes of settings
RETRY_S = 1.0  # an adapter is unpinned or unloaded without a sign to those who wait for room
STACKED = 4  # adapters that stay stacked although fewer are needed: building a stack takes as long as a step

# What decides an adapter's answers, beside its weights.
DECISIVE = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules")
# What only training needs, or the weights' names tell too.
IMMATERIAL = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}
# Any other setting must be empty or one of these; other ways to begin change the weights of the base model.
SERVED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal", "mica"),
}


class Part(NamedTuple):
    """A linear module of the module tree, as PEFT names it below its own `base_model.model.`."""

    module: str
    d_out: int


@dataclass(frozen=True, slots=True)
class Site:
    """A linear map of the forward pass: one module, or several of the same input, joined along the output."""

    d_in: int
    parts: tuple[Part, ...]


class Update(NamedTuple):
    """What an adapter adds to a module: y += up (down x). down: [rank, d_in]; up: [d_out, rank], scaled."""

    down: Tensor
    up: Tensor


@dataclass(slots=True)
class Adapter:
    """An adapter in memory, its updates by module. `holders` are the requests that wait or run with it."""

    name: str
    updates: dict[str, Update]
    holders: int = 0
    pinned: bool = False
    last_used: float = 0.0

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(tensor.nbytes for update in self.updates.values() for tensor in update)

    @property
    def rank(self) -> int:
        return max(len(update.down) for update in self.updates.values())


class Joined(NamedTuple):
    """All updates of a site. down: to [tokens, columns]; up: from there, with zeros where a column's module does not
    write, for one product with them costs less than one for each module. layout: index of whose each column is."""

    down: Linear | PackedLinear
    up: Linear | PackedLinear
    layout: int


class Stack:
    """Some adapters side by side. layouts: [columns], each column's place among the adapters; many sites share one."""

    def __init__(self, sites: Mapping[str, Site], adapters: Mapping[str, Adapter]) -> None:
        self.places = {digest: place for place, digest in enumerate(adapters)}
        self.joined: dict[str, Joined] = {}
        layouts: dict[tuple[int, ...], int] = {}
        for name, site in sites.items():
            downs, ups, columns = [], [], []
            before, after = 0, sum(part.d_out for part in site.parts)
            for module, d_out in site.parts:
                after -= d_out
                for place, adapter in enumerate(adapters.values()):
                    if update := adapter.updates.get(module):
                        downs.append(update.down)
                        ups.append(pad(update.up, (0, 0, before, after)))
                        columns += [place] * len(update.down)
                before += d_out
            if columns:
                layout = layouts.setdefault(tuple(columns), len(layouts))
                self.joined[name] = Joined(fastest(torch.cat(downs)), fastest(torch.cat(ups, 1)), layout)
        self.layouts = [torch.tensor(columns) for columns in layouts]


class LoraRows:
    """The adapters of one forward pass's tokens."""

    def __init__(self, stack: Stack, places: Tensor, device: torch.device) -> None:
        """places: [tokens], each token's adapter in the stack, -1 for the base model."""
        self._joined = stack.joined
        self._foreign = [(places[:, None] != columns).to(device) for columns in stack.layouts]

    def add_(self, site: str, x: Tensor, y: Tensor) -> None:
        """Add to `y`, [tokens, d_out], what each token's adapter makes of `x`, [tokens, d_in]. Others stay as they are.

        What a token gets from foreign columns is filled with zeros, not multiplied: it may be infinite.
        """
        if joined := self._joined.get(site):
            y.add_(joined.up(joined.down(x).masked_fill_(self._foreign[joined.layout], 0)))


class Adapters:
    """The adapters in memory, at most `max_count` of them and `max_mb` MiB.

    Those of the batch are held once more, stacked: the zeros between joined modules make that up to 1.5 times as much.

    Callers' threads load, hold, pin and unload; the engine's thread asks for `rows` and waits for none of them.
    An adapter's name is `name@digest`; two names with one digest are the same adapter. To make room, the one used
    longest ago goes that is neither held nor pinned. Methods that load raise `Refused`: `adapter_not_found`,
    `adapter_refused` (it cannot be served, the message says why) or `adapters_full` (not now).
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        dtype: torch.dtype,
        device: torch.device,
        *,
        folder: Path,
        model_digest: str,
        max_count: int,
        max_mb: int,
        max_rank: int,
    ) -> None:
        """folder: holds a PEFT folder for each digest. model_digest: what its meta.json must have as `base_digest`, if
        it has any."""
        self._sites, self._dtype, self._device = sites, dtype, device
        self._folder, self._model_digest = folder, model_digest
        self._max_count, self._max_bytes, self._max_rank = max_count, max_mb * 2**20, max_rank
        self._shapes = {part.module: (site.d_in, part.d_out) for site in sites.values() for part in site.parts}
        self._loaded: dict[str, Adapter] = {}
        self._lock = Lock()  # around `_loaded`; never held while files are read
        self._released = Condition(self._lock)
        self._reading = Lock()  # one load at a time, so that none is done twice
        self._stack = Stack(sites, {})

    # --- from any thread ---

    def load(self, name: str) -> None:
        """Have the adapter in memory, as the one used last."""
        self.acquire(name)
        self.release(name)

    def acquire(self, name: str, until: float | None = None) -> None:
        """Load the adapter if need be, and keep it until `release`. Where it finds no room, wait `until` that time."""
        while True:
            try:
                return self._acquire(name)
            except Refused as refused:
                if refused.code != "adapters_full" or time.time() >= (until or 0):
                    raise
            with self._lock:
                self._released.wait(RETRY_S)

    def _acquire(self, name: str) -> None:
        digest = digest_of(name)
        if self._hold(digest):
            return
        with self._reading:
            if self._hold(digest):  # another thread was first
                return
            adapter = Adapter(name, aside(lambda: self._read(self._folder / digest)), holders=1, last_used=time.time())
            with self._lock:
                self._make_room(adapter)
                self._loaded[digest] = adapter

    def release(self, name: str) -> None:
        """End what one `acquire` began."""
        with self._lock:
            adapter = self._loaded[digest_of(name)]
            adapter.holders -= 1
            adapter.last_used = time.time()
            self._released.notify_all()

    def pin(self, name: str) -> None:
        """Load the adapter if need be, and keep it until `unpin` or `unload`."""
        self.acquire(name)
        with self._lock:
            self._loaded[digest_of(name)].pinned = True
        self.release(name)

    def unpin(self, name: str) -> None:
        with self._lock:
            if adapter := self._loaded.get(digest_of(name)):
                adapter.pinned = False

    def unload(self, name: str) -> None:
        """Forget the adapter, if it is there. Raises `Refused` (`adapter_in_use`) while requests hold it."""
        digest = digest_of(name)
        with self._lock:
            if (adapter := self._loaded.get(digest)) and adapter.holders:
                raise Refused("adapter_in_use", f"{adapter.holders} requests use adapter {name}: wait for their end")
            self._loaded.pop(digest, None)

    def stats(self, running: Counter[str]) -> tuple[AdapterStats, ...]:
        """running: requests in the batch by name of their adapter."""
        by_digest: Counter[str] = Counter()
        for name, count in running.items():
            by_digest[digest_of(name)] += count
        with self._lock:
            return tuple(
                AdapterStats(a.name, a.rank, a.size / 2**20, a.pinned, by_digest[digest], a.last_used)
                for digest, a in self._loaded.items()
            )

    # --- from the engine's thread ---

    def rows(self, names: Sequence[str | None], counts: Sequence[int]) -> LoraRows | None:
        """What a forward pass adds to its maps, or None where that is nothing.

        names: of each row's adapter, which a request holds; counts: of each row's tokens, in the pass's order.
        """
        digests = [name and digest_of(name) for name in names]
        needed = {digest for digest in digests if digest}
        with self._lock:
            kept = [digest for digest in self._stack.places if digest in self._loaded]
            chosen = [*sorted(needed), *(digest for digest in kept if digest not in needed)]
            adapters = {digest: self._loaded[digest] for digest in chosen[: max(STACKED, len(needed))]}
        stacked = self._stack.places
        if len(kept) < len(stacked) or not needed <= stacked.keys() or len(stacked) > max(STACKED, 2 * len(needed)):
            self._stack = Stack(self._sites, {})  # free the old one first
            self._stack = Stack(self._sites, adapters)
        if not needed:
            return None
        places = torch.tensor([self._stack.places[digest] if digest else -1 for digest in digests])
        return LoraRows(self._stack, places.repeat_interleave(torch.tensor(counts)), self._device)

    # --- loading ---

    def _hold(self, digest: str) -> bool:
        with self._lock:
            if adapter := self._loaded.get(digest):
                adapter.holders += 1
                adapter.last_used = time.time()
            return adapter is not None

    def _make_room(self, new: Adapter) -> None:
        idle = [digest for digest, adapter in self._loaded.items() if not (adapter.holders or adapter.pinned)]
        kept = [adapter for digest, adapter in self._loaded.items() if digest not in idle]
        kept_size = sum(adapter.size for adapter in kept)
        if len(kept) >= self._max_count or kept_size + new.size > self._max_bytes:
            raise Refused(
                "adapters_full",
                f"no room for adapter {new.name} of {mib(new.size)}: {len(kept)} of at most {self._max_count} are in "
                f"use or pinned, with {mib(kept_size)} of {mib(self._max_bytes)}; try again later, or unpin one",
            )
        size = new.size + sum(adapter.size for adapter in self._loaded.values())
        for digest in sorted(idle, key=lambda digest: self._loaded[digest].last_used):
            if len(self._loaded) < self._max_count and size <= self._max_bytes:
                break
            size -= self._loaded.pop(digest).size

    def _read(self, folder: Path) -> dict[str, Update]:
        if not folder.is_dir():
            raise Refused("adapter_not_found", f"{folder} does not exist: put the adapter's PEFT folder there")
        for path in (folder, folder / CONFIG, folder / WEIGHTS, folder / META):
            if path.is_symlink():
                raise refused(path, "is a symbolic link: put the file itself there")
        if (digest := adapter_digest(folder)) != folder.name:
            raise refused(folder, f"has the digest {digest}: it was changed, publish it under its own")
        updates = read_updates(folder, self._shapes, self._model_digest, self._dtype, self._device, self._max_rank)
        if (size := Adapter("", updates).size) > self._max_bytes:
            raise refused(folder, f"takes {mib(size)}, adapters may take {mib(self._max_bytes)}: raise that limit")
        return updates


def read_updates(
    folder: Path,
    shapes: Mapping[str, tuple[int, int]],
    base_digest: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    max_rank: float = inf,
) -> dict[str, Update]:
    """What the adapter of a PEFT folder adds, by module. Raises `Refused` where that is not all that it does.

    shapes: (d_in, d_out) of every linear module that may be adapted. base_digest: what meta.json must name, if it names
    any.
    """
    config = read_config(folder)
    check_served(folder / CONFIG, config)
    if (folder / META).exists() and (base := read_json(folder / META).get("base_digest", base_digest)) != base_digest:
        raise refused(folder / META, f"has the base_digest {base}, this is {base_digest}: train on this model")
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as file:
            updates = {
                module: Update(*(tensor.to(device, dtype) for tensor in pair))
                for module, pair in read_pairs(file, path, shapes, config, max_rank)
            }
    except (SafetensorError, OSError) as error:
        raise refused(path, f"is not a safetensors file: {error}") from error
    for module, update in updates.items():
        if not all(tensor.isfinite().all() for tensor in update):
            raise refused(path, f"has values for {module} that are not finite in {dtype}: train it again")
    if not any((update.up.float() @ update.down.float()).any() for update in updates.values()):
        raise refused(path, "changes nothing, as every product of lora_B and lora_A is zero: train it")
    return updates


def read_pairs(
    file: Any, path: Path, shapes: Mapping[str, tuple[int, int]], config: Mapping[str, Any], max_rank: float
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """The modules of a safetensors file, each with its lora_A and its scaled lora_B in float32."""
    found = {key: WEIGHT.fullmatch(key) for key in file.keys()}  # noqa: SIM118
    modules = sorted({match[1] for match in found.values() if match})
    if not shapes.keys() & set(modules):
        raise refused(path, f"matches no module of this model, such as {next(iter(shapes))}")
    unknown = [module for module in modules if module not in shapes]
    if unknown := unknown + [key for key, match in found.items() if not match]:
        names = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        raise refused(path, f"has weights for {names}, where this model takes none: train without these")
    scales = Scales(path.with_name(CONFIG), config)
    for module in modules:
        rank, scale = scales.of(module)
        if rank > max_rank:
            limit = f"at most {max_rank} is served: train with a smaller r, or raise that limit"
            raise refused(path, f"has rank {rank} for {module}, {limit}")
        d_in, d_out = shapes[module]
        keys = [f"base_model.model.{module}.lora_{side}.weight" for side in "AB"]
        for key, shape in zip(keys, ([rank, d_in], [d_out, rank]), strict=True):
            if key not in found:
                raise refused(path, f"has no {key}: save the adapter again")
            if (given := file.get_slice(key).get_shape()) != shape:
                expected = f"this model and {CONFIG} want {shape}: train on this model"
                raise refused(path, f"has {given} as the shape of {key}, {expected}")
        down, up = (file.get_tensor(key).float() for key in keys)
        yield module, (down, up * scale)


def adapter_digest(folder: Path, config: Mapping[str, Any] | None = None) -> str:
    """The digest by which a PEFT folder is known: 16 hex digits of what decides its answers, weights and settings.

    config: the settings that it is to have, in the place of those that are there.
    Raises `Refused` for a folder that PEFT did not write, or whose weights are no safetensors.
    """
    config = read_config(folder) if config is None else config
    weights = folder / WEIGHTS
    if not weights.is_file():
        others = ", ".join(path.name for path in sorted(folder.glob("adapter_model.*")))
        found = f" (there is {others}, which is not opened)" if others else ""
        raise refused(weights, f"does not exist{found}: save the adapter with PEFT's save_pretrained")
    with weights.open("rb") as file:
        decisive: dict[str, Any] = {"weights": file_digest(file, "sha256").hexdigest()}
    for key in DECISIVE:
        if value := config.get(key):
            decisive[key] = sorted(value) if isinstance(value, list) else value
    return sha256(json.dumps(decisive).encode()).hexdigest()[:16]


def digest_of(name: str) -> str:
    if not (match := NAME.fullmatch(name)):
        raise Refused("adapter_not_found", f"adapter {name!r} is not of the form name@digest, with 16 hex digits")
    return match[1]


def check_served(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse what PEFT can do to a model and this engine does not."""
    for key, value in config.items():
        if value and key not in IMMATERIAL and key not in DECISIVE and value not in SERVED.get(key, ()):
            raise refused(path, f"has {key} = {json.dumps(value)}, which is not served: train without it")


class Scales:
    """Ranks and scales as PEFT has them: the first pattern counts that matches the end of a module's name."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self._path, self._config = path, config
        self._patterns: dict[str, Patterns] = {}

    def of(self, module: str) -> tuple[int, float]:
        config = self._config
        try:
            rank = self._value(module, "rank_pattern", "r")
            alpha = self._value(module, "alpha_pattern", "lora_alpha")
            return rank, alpha / (sqrt(rank) if config.get("use_rslora") else rank)
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            problem = f"gives {module} no valid r and lora_alpha ({error}): save the adapter again"
            raise refused(self._path, problem) from error

    def _value(self, module: str, patterns: str, default: str) -> Any:
        if patterns not in self._patterns:
            self._patterns[patterns] = Patterns(self._config.get(patterns) or {})
        return self._patterns[patterns].of(module, self._config[default])


def read_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / CONFIG)


def read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON:
            raise refused(path, f"is larger than {mib(MAX_JSON)}")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise refused(path, f"cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise refused(path, "is not a JSON object")
    return value


def refused(path: Path, problem: str) -> Refused:
    return Refused("adapter_refused", f"{path} {problem}")


def mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
