"""What crosses the borders of the torch side: between tasks and an engine. Plain frozen data; no Django, no torch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "cancelled"]


class Refused(Exception):
    """An expected failure that the caller can mend: `code` is for programs, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class EngineCrashed(Exception):
    """The engine failed while this request was in its batch: a bug, not the caller's fault."""


class EngineStopped(EngineCrashed):
    """The engine was shut down in good order: nothing is wrong with the request, another worker can go on with it."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Randomness is a function of `(seed, position)` alone, never of the batch."""

    max_tokens: int
    temperature: float = 1.0  # 0 takes the likeliest token
    top_k: int = 0  # 0 keeps all
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # None: none; k: the chosen token's and the k likeliest


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One row of the batch.

    `delivered` are the tokens of an earlier attempt that the client has already seen: generation goes on after them as
    if it had never stopped. `deadline` is Unix time in seconds. `adapter` is an adapter's `name@digest`.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    delivered: tuple[int, ...] = ()
    deadline: float | None = None
    priority: int = 0  # lower is sooner
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its natural-log probability before temperature, and the likeliest alternatives at its position."""

    id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens whose text is settled: whole characters, and no possible beginning of a stop string."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended. `text` is all of it, delivered tokens of earlier attempts included."""

    finish_reason: FinishReason
    text: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineStats:
    waiting: int  # submitted, not yet in the batch
    running: int
    tokens_generated: int  # since the engine started
    batch_limit: int
    extra: dict[str, float] = field(default_factory=dict)


class Handle(Protocol):
    """A submitted request, from any thread."""

    def cancel(self) -> None:
        """Ask the engine to drop the request before its next step; `wait` then returns what there is."""

    def wait(self, timeout: float | None = None) -> Outcome:
        """Block until the end. Raises `Refused` (`deadline_exceeded`, `context_length_exceeded`, …), `EngineCrashed`
        or `TimeoutError`."""
        ...


class Engine(Protocol):
    """Generates text for many requests at once. One thread calls `step`; any thread may call the rest."""

    def submit(self, request: GenerateRequest, on_delta: Callable[[Delta], None]) -> Handle:
        """Queue a request. `on_delta` is called on the engine's thread and must not block. Raises `Refused` at once
        for what can never run."""
        ...

    def step(self) -> bool:
        """Do one unit of work; False when there was none. Never raises: a crash fails the requests it concerned."""
        ...

    def stats(self) -> EngineStats: ...
