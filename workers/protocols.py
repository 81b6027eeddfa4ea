"""What crosses the borders of the torch side: between tasks and an engine. Plain frozen data; no Django, no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

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
    min_p: float = 0.0  # keeps what is at least so likely as this share of the likeliest
    repetition_penalty: float = 1.0  # divides the positive logits of tokens of prompt and answer, multiplies the others
    presence_penalty: float = 0.0  # taken off the logit of every token of the answer, once
    frequency_penalty: float = 0.0  # the same for each time it occurs there
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # None: none; k: the chosen token's and the k likeliest
    json_schema: str | None = None  # the answer is compact JSON of this schema


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
    alone: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its natural-log probability before temperature, and the likeliest alternatives at its position.

    `bytes` are those of its text, and tell what a token that is not whole characters is a part of.
    """

    id: int
    text: str
    bytes: tuple[int, ...]
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


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
    cached_tokens: int = 0  # of the prompt, found in the cache


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """How likely texts are after one prefix, which is computed once for all of them.

    Without `labels` each continuation's tokens are scored. With `labels` it is the end of a question (perhaps empty),
    and what is scored is each label token as the one that follows it.
    """

    id: str
    prefix: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...] = ()
    deadline: float | None = None
    priority: int = 1
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """Natural-log probabilities over the whole vocabulary, one tuple for each continuation, in its order.

    Of each of its tokens, or, where the request has labels, of each label.
    """

    logprobs: tuple[tuple[float, ...], ...]
    prompt_tokens: int  # that the request held, its prefix once
    cached_tokens: int  # of them, found in the cache


@dataclass(frozen=True, slots=True)
class AdapterStats:
    """An adapter in an engine's memory. `name` is `name@digest`."""

    name: str
    rank: int
    megabytes: float
    pinned: bool
    running: int  # requests in the batch that use it
    last_used: float  # Unix time


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine holds now, and what it has done since it started (the counts only grow)."""

    waiting: int  # submitted, not yet in the batch
    running: int
    tokens_generated: int
    batch_limit: int
    prompt_tokens: int = 0  # of admitted requests
    cached_tokens: int = 0  # of them, found in the cache instead of computed
    steps: int = 0  # forward passes
    prefill_seconds: float = 0.0  # forward passes that read prompts; those that only decode are in decode_seconds
    decode_seconds: float = 0.0
    kv_tokens: int = 0  # cached positions: taken by running requests, kept for reuse, and in all
    kv_retained_tokens: int = 0
    kv_capacity_tokens: int = 0
    crashes: int = 0
    adapters: tuple[AdapterStats, ...] = ()
    step_seconds: float = 0.0  # that the step under way has taken, or an event loop not run; what never ends is stuck
    trouble: str = ""  # why it cannot answer now, if it knows


R = TypeVar("R", covariant=True)


class Handle(Protocol[R]):
    """A submitted request, from any thread."""

    def cancel(self) -> None:
        """Ask the engine to drop the request before its next step; `wait` of an answer then returns what there is."""

    def wait(self, timeout: float | None = None) -> R:
        """Block until the end. Raises `Refused` (`deadline_exceeded`, `context_length_exceeded`, `cancelled`, …),
        `EngineCrashed` or `TimeoutError`."""
        ...


class Engine(Protocol):
    """Generates and scores text for many requests at once. Every method may be called from any thread."""

    @property
    def context_tokens(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        ...

    def submit(self, request: GenerateRequest, on_delta: Callable[[Delta], None]) -> Handle[Outcome]:
        """Queue a request. `on_delta` is called on the engine's thread and must not block. Raises `Refused` at once
        for what can never run: a bad token, too long a prompt, an unknown adapter, an unsupported schema."""
        ...

    def score(self, request: ScoreRequest) -> Handle[Scores]:
        """Queue a request for log-probabilities. Raises `Refused` as `submit` does."""
        ...

    def stats(self) -> EngineStats: ...

    def close(self) -> None:
        """Take no more, end what there is with `EngineStopped`, and return when nothing of it runs any more."""
