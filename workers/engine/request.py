"""A submitted request: what was asked, how far it is, and the handle by which its owner waits for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from workers.engine.cache import Row
from workers.engine.text import TextStream
from workers.protocols import (
    Delta,
    EngineCrashed,
    FinishReason,
    GenerateRequest,
    Outcome,
    Refused,
    ScoreRequest,
    Scores,
    TokenLogprob,
)

if TYPE_CHECKING:
    from workers.engine.grammar import Grammar


class Piece(NamedTuple):
    """Tokens to read next, in the terms of `attention.Read`."""

    tokens: Sequence[int]
    wanted: Sequence[int] = ()
    branches: tuple[int, ...] = ()


class Ticket:
    """One request in the engine, and its handle. It ends exactly once.

    Everything but `cancel` and `wait` belongs to the engine's thread.
    """

    adapter: str | None
    priority: int
    deadline: float | None
    alone = False
    longest: int  # positions that it may need in the cache
    sequence: list[int]  # what the row must hold before anything new can be said
    row: Row  # once it runs

    def __init__(self, request_id: str, wake: Callable[[], None]) -> None:
        self.id = request_id
        self.urgency = 0.0  # when it arrived, moved by its priority; seconds
        self.cached_tokens = 0
        self.cancelled = False
        self.future: Future[Any] = Future()
        self._wake = wake

    def cancel(self) -> None:
        self.cancelled = True
        self._wake()

    @property
    def done(self) -> bool:
        return self.future.done()

    def fail(self, error: Exception) -> None:
        if not self.done:
            self.future.set_exception(error)

    def give_up(self) -> None:
        """End at the owner's wish."""
        raise NotImplementedError

    def progress(self) -> str:
        """How far it is, for an error's message."""
        raise NotImplementedError


class Generation(Ticket):
    """An answer in the making."""

    def __init__(
        self,
        request: GenerateRequest,
        on_delta: Callable[[Delta], None],
        token_bytes: Callable[[int], bytes],
        grammar: Grammar | None,
        wake: Callable[[], None],
    ) -> None:
        super().__init__(request.id, wake)
        self.adapter, self.priority, self.deadline = request.adapter, request.priority, request.deadline
        self.alone = request.alone
        self.longest = len(request.prompt) + request.sampling.max_tokens
        self.request = request
        self.sampling = request.sampling
        self.answer = list(request.delivered)
        self.sequence = [*request.prompt, *request.delivered]
        self.grammar = grammar
        self.text = TextStream(token_bytes, request.sampling.stop)
        self.text.resume(request.delivered)
        self._on_delta = on_delta

    def wait(self, timeout: float | None = None) -> Outcome:
        outcome: Outcome = self.future.result(timeout)
        return outcome

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer is complete, or None while it is not."""
        if self.text.stopped or (self.grammar and self.grammar.done):
            return "stop"
        return "length" if len(self.answer) >= self.sampling.max_tokens else None

    def accept(self, token: int, logprob: TokenLogprob | None) -> None:
        """Take the next token of the answer, and hand on what text it settles."""
        self.answer.append(token)
        self.sequence.append(token)
        self._deliver(self.text.push(token, logprob))

    def finish(self, reason: FinishReason) -> None:
        """End well, or at the owner's wish; what text was held back goes out first."""
        self._deliver(self.text.finish())
        if not self.done:
            prompt = len(self.request.prompt)
            cached = min(self.cached_tokens, prompt)  # of what was delivered before, too
            self.future.set_result(Outcome(reason, self.text.text, prompt, len(self.answer), cached))

    def give_up(self) -> None:
        self.finish("cancelled")

    def progress(self) -> str:
        return f"{len(self.answer)} tokens of the answer"

    def _deliver(self, delta: Delta | None) -> None:
        """A receiver that fails ends its own request and no other's."""
        if delta is None or self.done:
            return
        try:
            self._on_delta(delta)
        except Exception as cause:
            error = EngineCrashed(f"request {self.id}: its receiver failed: {cause!r}")
            error.__cause__ = cause
            self.fail(error)


class Scoring(Ticket):
    """Log-probabilities in the making.

    First the prefix is read; its last state scores what may follow. Then the continuations are read as branches, many
    in a pass: all but the last token of each, or, where labels are asked for, all of it for its last state.
    """

    def __init__(self, request: ScoreRequest, branch_tokens: int, wake: Callable[[], None]) -> None:
        super().__init__(request.id, wake)
        self.adapter, self.priority, self.deadline = request.adapter, request.priority, request.deadline
        self.request = request
        self.sequence = list(request.prefix)
        self.scores: list[list[float]] = [[] for _ in request.continuations]
        self._branches = [
            (index, tokens if request.labels else tokens[:-1])
            for index, tokens in enumerate(request.continuations)
            if len(tokens) > (0 if request.labels else 1)
        ]
        self._branches.reverse()  # taken from the end
        self._reading: list[int] = []
        room = max((len(tokens) for _, tokens in self._branches), default=0)
        self.longest = len(request.prefix) + max(room, min(branch_tokens, sum(len(t) for _, t in self._branches)))

    def wait(self, timeout: float | None = None) -> Scores:
        scores: Scores = self.future.result(timeout)
        return scores

    def branches(self, limit: int) -> Piece:
        """The next continuations, as many as have `limit` tokens together; one alone may have more."""
        tokens: list[int] = []
        lengths: list[int] = []
        self._reading = []
        limit = min(limit, self.longest - len(self.request.prefix))
        while self._branches and (not tokens or len(tokens) + len(self._branches[-1][1]) <= limit):
            index, branch = self._branches.pop()
            self._reading.append(index)
            tokens += branch
            lengths.append(len(branch))
        if self.request.labels:
            wanted = [sum(lengths[: i + 1]) - 1 for i in range(len(lengths))]
        else:
            wanted = list(range(len(tokens)))
        return Piece(tokens, wanted, tuple(lengths))

    def targets(self) -> list[tuple[int, int, int]]:
        """Of the states that the last read wanted: (which state, which continuation, which token is to be scored)."""
        continuations = self.request.continuations
        if not self._reading:  # the end of the prefix
            if labels := self.request.labels:
                empty = [index for index, tokens in enumerate(continuations) if not tokens]
                return [(0, index, label) for index in empty for label in labels]
            return [(0, index, tokens[0]) for index, tokens in enumerate(continuations) if tokens]
        if labels := self.request.labels:
            return [(state, index, label) for state, index in enumerate(self._reading) for label in labels]
        follow = [(index, token) for index in self._reading for token in continuations[index][1:]]
        return [(state, index, token) for state, (index, token) in enumerate(follow)]

    @property
    def complete(self) -> bool:
        return not self._branches

    def finish(self) -> None:
        if not self.done:
            held = len(self.request.prefix) + sum(map(len, self.request.continuations))
            self.future.set_result(Scores(tuple(map(tuple, self.scores)), held, self.cached_tokens))

    def give_up(self) -> None:
        self.fail(Refused("cancelled", "the request was cancelled"))

    def progress(self) -> str:
        left = len(self._branches)
        return f"{len(self.scores) - left} of {len(self.scores)} continuations"
