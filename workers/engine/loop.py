"""The local engine: continuous batching over one model, and the thread that drives it."""

import logging
import time
from collections import deque
from collections.abc import Callable
from threading import Event, Lock, Thread

import torch
from torch import Tensor

from workers.engine.cache import blocks
from workers.engine.model import SlotModel, TransformersModel
from workers.engine.request import Ticket
from workers.engine.sampling import likeliest, sample
from workers.engine.scheduler import Scheduler
from workers.models.load import LoadedModel
from workers.protocols import Delta, EngineCrashed, EngineStats, EngineStopped, GenerateRequest, Refused, TokenLogprob

logger = logging.getLogger(__name__)

PREFILL_TOKENS = 512  # new prompts read between two decoding steps: bounds how long running answers pause for them
LOGPROB_ROWS = 16  # of a resumed answer at a time: a row of logits takes a megabyte


class LocalEngine:
    """An `Engine` over one model in this process.

    A step reads waiting prompts into free rows, then makes one token for every row. Rows join and leave at any step:
    row i of the batch is slot i of the model, and the last row moves into the place of one that leaves.
    """

    def __init__(
        self,
        model: SlotModel,
        token_bytes: Callable[[int], bytes],
        stop_ids: frozenset[int],
        context_tokens: int,
        batch_limit: int,
    ) -> None:
        self._model = model
        self._token_bytes = token_bytes
        self._stop_ids = stop_ids
        self._context_tokens = context_tokens
        self._batch_limit = batch_limit
        self._scheduler = Scheduler(model.capacity, batch_limit)
        self._running: list[Ticket] = []
        self._inbox: deque[Ticket] = deque()
        self._gate = Lock()  # between submit and close
        self._closed = False
        self._news = Event()
        self._counts = {"prompt_tokens": 0, "tokens": 0, "prefill_seconds": 0.0, "decode_seconds": 0.0, "crashes": 0}

    @classmethod
    def over(cls, loaded: LoadedModel, *, kv_cache_mb: int, context_tokens: int, batch_limit: int) -> "LocalEngine":
        """An engine over a loaded model, which it takes over."""
        return cls(
            TransformersModel(loaded.model, kv_cache_mb),
            loaded.tokenizer.token_bytes,
            loaded.stop_ids,
            min(context_tokens, loaded.context_tokens),
            batch_limit,
        )

    # --- from any thread ---

    def submit(self, request: GenerateRequest, on_delta: Callable[[Delta], None]) -> Ticket:
        self._check(request)
        ticket = Ticket(request, on_delta, self._token_bytes, self._news.set)
        with self._gate:
            if self._closed:
                raise EngineStopped("the engine was stopped")
            self._inbox.append(ticket)
        self._news.set()
        return ticket

    def stats(self) -> EngineStats:
        running = tuple(self._running)
        extra = {name: float(count) for name, count in self._counts.items() if name != "tokens"}
        extra["kv_capacity_tokens"] = float(self._model.capacity)
        extra["kv_reserved_tokens"] = float(len(running) * max((blocks(t.longest) for t in running), default=0))
        return EngineStats(
            waiting=len(self._inbox) + len(self._scheduler),
            running=len(running),
            tokens_generated=int(self._counts["tokens"]),
            batch_limit=self._batch_limit,
            extra=extra,
        )

    def wake(self) -> None:
        """End a `wait_for_news`."""
        self._news.set()

    # --- from the engine's thread ---

    def wait_for_news(self) -> None:
        """Sleep until something was submitted or cancelled since the last call."""
        self._news.wait()
        self._news.clear()

    @torch.inference_mode()
    def step(self) -> bool:
        try:
            while self._inbox:
                self._scheduler.add(self._inbox.popleft())
            self._drop_unwanted()
            before = self._counts["tokens"]
            self._prefill()
            if self._running:
                self._decode()
            return self._counts["tokens"] > before
        except Exception as cause:
            self._crash(cause)
            return True

    def close(self) -> None:
        """Take no more, and end what there is with `EngineStopped`."""
        with self._gate:
            self._closed = True
        for ticket in [*self._running, *self._inbox, *self._scheduler.remove(lambda _: True)]:
            ticket.fail(EngineStopped("the engine was stopped"))
        self._running.clear()
        self._inbox.clear()
        self._model.reset()

    # --- the parts of a step ---

    def _prefill(self) -> None:
        """Let waiting requests join, as many as `PREFILL_TOKENS` allow, each with its first token.

        Shorter prompts are padded at their end. What that puts into the cache lies beyond the row's length, where no
        token looks before it is overwritten.
        """
        started = time.perf_counter()
        first = len(self._running)
        while ticket := self._scheduler.take(self._running, self._running[first:], PREFILL_TOKENS):
            if ticket.finish_reason:  # an earlier attempt died between its last token and its report
                ticket.finish(ticket.finish_reason)
            else:
                self._running.append(ticket)
        joined = self._running[first:]
        if not joined:
            return
        self._reserve()
        longest = max(ticket.length for ticket in joined)
        tokens = [[*t.request.prompt, *t.tokens, *[0] * (longest - t.length)] for t in joined]
        states = self._model.forward(first, tokens, [range(longest)] * len(joined))
        for ticket, own in zip(joined, states, strict=True):
            if ticket.request.sampling.logprobs is not None:
                ticket.logprobs = self._logprobs_of_delivered(ticket, own)
        ends = [ticket.length - 1 for ticket in joined]
        self._advance(first, self._model.logits(states[range(len(joined)), ends]))
        self._counts["prompt_tokens"] += sum(len(ticket.request.prompt) for ticket in joined)
        self._counts["prefill_seconds"] += time.perf_counter() - started

    def _decode(self) -> None:
        """One more token for every row."""
        started = time.perf_counter()
        self._reserve()
        tokens = [[ticket.tokens[-1]] for ticket in self._running]
        positions = [[ticket.length - 1] for ticket in self._running]
        states = self._model.forward(0, tokens, positions)
        self._advance(0, self._model.logits(states[:, -1]))
        self._counts["decode_seconds"] += time.perf_counter() - started

    def _reserve(self) -> None:
        self._model.reserve(len(self._running), max(ticket.length for ticket in self._running))

    def _advance(self, first: int, logits: Tensor) -> None:
        """Choose the next token of each row from `first` on, and let go of the rows that it completes."""
        rows = self._running[first:]
        chosen = sample(logits, [row.request.sampling for row in rows], [row.length for row in rows])
        self._counts["tokens"] += len(rows)
        ended: list[int] = []
        for index, (ticket, token) in enumerate(zip(rows, chosen, strict=True)):
            if token in self._stop_ids:
                ticket.finish("stop")
            else:
                wanted = ticket.request.sampling.logprobs
                logprobs = self._logprobs(logits[index : index + 1], [token], wanted) if wanted is not None else [None]
                ticket.accept(token, logprobs[0])
                if ticket.finish_reason:
                    ticket.finish(ticket.finish_reason)
            if ticket.done:
                ended.append(first + index)
        for row in reversed(ended):
            self._leave(row)

    def _logprobs_of_delivered(self, ticket: Ticket, states: Tensor) -> list[TokenLogprob]:
        """The log-probabilities that an earlier attempt had computed. states: of the ticket's sequence."""
        logprobs: list[TokenLogprob] = []
        count = ticket.request.sampling.logprobs or 0
        for start in range(0, len(ticket.tokens), LOGPROB_ROWS):
            tokens = ticket.tokens[start : start + LOGPROB_ROWS]
            logits = self._model.logits(states[len(ticket.request.prompt) - 1 + start :][: len(tokens)])
            logprobs += self._logprobs(logits, tokens, count)
        return logprobs

    def _logprobs(self, logits: Tensor, tokens: list[int], count: int) -> list[TokenLogprob]:
        def text(token: int) -> str:
            return self._token_bytes(token).decode(errors="replace").replace("\0", "\ufffd")

        return [
            TokenLogprob(token, text(token), own, tuple((other, text(other), value) for other, value in top))
            for token, (own, top) in zip(tokens, likeliest(logits, tokens, count), strict=True)
        ]

    def _drop_unwanted(self) -> None:
        """End what was cancelled or is past its deadline, waiting or running."""
        now = time.time()

        def unwanted(ticket: Ticket) -> bool:
            deadline = ticket.request.deadline
            return ticket.cancelled or (deadline is not None and deadline <= now)

        dropped = self._scheduler.remove(unwanted)
        for row in reversed(range(len(self._running))):
            if unwanted(self._running[row]):
                dropped.append(self._leave(row))
        for ticket in dropped:
            if ticket.cancelled:
                ticket.finish("cancelled")
            else:
                made = len(ticket.tokens)
                ticket.fail(Refused("deadline_exceeded", f"the deadline passed after {made} tokens of the answer"))

    def _leave(self, row: int) -> Ticket:
        """Take a row out of the batch."""
        ticket, last = self._running[row], self._running.pop()
        if last is not ticket:
            self._running[row] = last
            self._model.move(len(self._running), row, last.length)
        return ticket

    def _crash(self, cause: Exception) -> None:
        """Fail the batch and start over with an empty one; what waits is not concerned."""
        logger.exception("engine step failed", exc_info=cause)
        self._counts["crashes"] += 1
        for ticket in self._running or self._scheduler.remove(lambda _: True):
            error = EngineCrashed(f"the engine failed in request {ticket.request.id}'s batch: {cause!r}")
            error.__cause__ = cause
            ticket.fail(error)
        self._running.clear()
        self._model.reset()

    def _check(self, request: GenerateRequest) -> None:
        """Raise `Refused` for what can never run."""
        sampling = request.sampling
        if not request.prompt or sampling.max_tokens < 1:
            raise Refused(
                "invalid_request", "a request needs a prompt of one token or more, and max_tokens of 1 or more"
            )
        if not all(0 <= token < self._model.vocabulary for token in (*request.prompt, *request.delivered)):
            raise Refused("invalid_request", f"token ids are from 0 to {self._model.vocabulary - 1}")
        if "" in sampling.stop:
            raise Refused("invalid_request", "a stop string must not be empty")
        if request.adapter is not None:
            raise Refused("adapter_not_found", f"adapter {request.adapter} is not loaded")
        prompt, answer = len(request.prompt), sampling.max_tokens
        limit = min(self._context_tokens, self._model.capacity // blocks(1) * blocks(1))
        if prompt + answer > limit:
            message = (
                f"the context holds {limit} tokens; {prompt} of prompt and {answer} to generate are {prompt + answer}"
            )
            raise Refused("context_length_exceeded", message)


class EngineThread:
    """Drives an engine on a thread of its own, which sleeps while there is nothing to do."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._stopping = False
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the step at hand, end all requests with `EngineStopped`, and return when the thread has ended."""
        self._stopping = True
        self._engine.wake()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            if not self._engine.step():
                self._engine.wait_for_news()
        self._engine.close()
