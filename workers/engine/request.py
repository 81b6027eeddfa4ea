"""A submitted request: what was asked, how far it is, and the handle by which its owner waits for it."""

from collections.abc import Callable
from concurrent.futures import Future

from workers.engine.text import TextStream
from workers.protocols import Delta, EngineCrashed, FinishReason, GenerateRequest, Outcome, TokenLogprob


class Ticket:
    """One request in the engine, and its `Handle`. It ends exactly once, by `finish` or `fail`.

    Everything but `cancel` and `wait` belongs to the engine's thread.
    """

    def __init__(
        self,
        request: GenerateRequest,
        on_delta: Callable[[Delta], None],
        token_bytes: Callable[[int], bytes],
        wake: Callable[[], None],
    ) -> None:
        self.request = request
        self.tokens = list(request.delivered)  # of the answer
        self.logprobs: list[TokenLogprob] = []
        self.text = TextStream(token_bytes, request.sampling.stop)
        self.text.resume(request.delivered)
        self.cancelled = False
        self._on_delta = on_delta
        self._wake = wake
        self._future: Future[Outcome] = Future()

    # --- the owner's side ---

    def cancel(self) -> None:
        self.cancelled = True
        self._wake()

    def wait(self, timeout: float | None = None) -> Outcome:
        return self._future.result(timeout)

    # --- the engine's side ---

    @property
    def done(self) -> bool:
        return self._future.done()

    @property
    def length(self) -> int:
        """Tokens of prompt and answer up to now, which is the position of the next one."""
        return len(self.request.prompt) + len(self.tokens)

    @property
    def longest(self) -> int:
        """The length at the end if no stop comes first."""
        return len(self.request.prompt) + self.request.sampling.max_tokens

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer is complete, or None while it is not."""
        if self.text.stopped:
            return "stop"
        return "length" if len(self.tokens) >= self.request.sampling.max_tokens else None

    def accept(self, token: int, logprob: TokenLogprob | None) -> None:
        """Take the next token of the answer, and hand on what text it settles."""
        self.tokens.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        self._deliver(self.text.push(token, logprob))

    def finish(self, reason: FinishReason) -> None:
        """End well, or at the owner's wish; what text was held back goes out first."""
        self._deliver(self.text.finish())
        if not self.done:
            outcome = Outcome(reason, self.text.text, len(self.request.prompt), len(self.tokens), tuple(self.logprobs))
            self._future.set_result(outcome)

    def fail(self, error: Exception) -> None:
        if not self.done:
            self._future.set_exception(error)

    def _deliver(self, delta: Delta | None) -> None:
        """A receiver that fails ends its own request and no other's."""
        if delta is None or self.done:
            return
        try:
            self._on_delta(delta)
        except Exception as cause:
            error = EngineCrashed(f"request {self.request.id}: its receiver failed: {cause!r}")
            error.__cause__ = cause
            self.fail(error)
