"""The remote engine: a model server (vLLM, llama.cpp, any OpenAI-compatible one) behind the same jobs and streams.

A server that is away is asked again until the job's deadline, as a job without a worker waits in its queue. Whole
characters and stop strings are found here, by the local engine's `TextStream`.

What this engine cannot promise: a seed's randomness is the server's own, so what is resumed at a temperature above 0
goes on otherwise than it would have; llama.cpp's presence and frequency penalties count the prompt too.
"""

import asyncio
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import aclosing, suppress
from itertools import chain, count
from pathlib import Path
from threading import Lock, Thread

from workers.engine.server import Chunk, ModelServer, Unavailable, check_length
from workers.engine.text import TextStream
from workers.models.tokenizer import Tokenizer
from workers.protocols import (
    Delta,
    EngineCrashed,
    EngineStats,
    EngineStopped,
    FinishReason,
    GenerateRequest,
    Handle,
    Outcome,
    Refused,
    ScoreRequest,
    Scores,
    TokenLogprob,
)

logger = logging.getLogger(__name__)

BACKOFF_S, BACKOFF_LIMIT_S = 0.5, 10.0
FAILURES_TO_OPEN = 5  # in a row
FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
PROBE_S = 5.0  # how often an open breaker lets a request try
TICK_S = 1.0  # how often the event loop shows that it runs


class Breaker:
    """Spares a server that fails: after `FAILURES_TO_OPEN` failures only one request in `PROBE_S` passes.

    The others wait until one succeeds. They are durable jobs: to fail them at once would help nobody.
    """

    def __init__(self) -> None:
        self.cause: Unavailable | None = None  # the last failure, while nothing has succeeded since
        self._failures = 0
        self._probe_at = 0.0
        self._closed = asyncio.Event()

    @property
    def open(self) -> bool:
        return self._failures >= FAILURES_TO_OPEN

    async def passage(self) -> None:
        """Return when a request may try."""
        while self.open and (wait := self._probe_at - time.monotonic()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._closed.wait()
        self._probe_at = time.monotonic() + PROBE_S

    def failed(self, cause: Unavailable) -> None:
        self.cause = cause
        self._failures += 1
        self._closed.clear()
        if self._failures == FAILURES_TO_OPEN:
            logger.error("%s: %d failures in a row, requests wait", str(cause), FAILURES_TO_OPEN)

    def succeeded(self) -> None:
        if self.open:
            logger.warning("the model server answers again")
        self.cause = None
        self._failures = 0
        self._closed.set()


class RemoteGeneration:
    """An answer in the making, and its handle. All but `cancel` and `wait` belongs to the engine's thread."""

    task: asyncio.Task[FinishReason]

    def __init__(
        self,
        request: GenerateRequest,
        on_delta: Callable[[Delta], None],
        token_bytes: Callable[[int], bytes],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.request = request
        self.answer = list(request.delivered)
        self.text = TextStream(token_bytes, request.sampling.stop)
        self.text.resume(request.delivered)
        self.running = False  # not waiting for its turn
        self.begun = False  # has a part of the server's answer
        self.trouble: Unavailable | None = None  # what it waits to pass
        self.cancelled = False
        self.cached_tokens = 0
        self.future: Future[Outcome] = Future()
        self._on_delta = on_delta
        self._held: list[Delta] = []
        self._loop = loop

    def cancel(self) -> None:
        self.cancelled = True
        with suppress(RuntimeError):  # the loop is closed, so the request has ended
            self._loop.call_soon_threadsafe(lambda: self.task.cancel())

    def wait(self, timeout: float | None = None) -> Outcome:
        return self.future.result(timeout)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer is complete, or None while it is not."""
        if self.text.stopped:
            return "stop"
        return "length" if len(self.answer) >= self.request.sampling.max_tokens else None

    def resumed_reason(self) -> FinishReason | None:
        """Why it was complete already: an earlier attempt died between its last token and its report."""
        if self.finish_reason or not (self.answer and self.request.sampling.json_schema):
            return self.finish_reason
        try:
            json.loads(self.text.text)
        except ValueError:
            raise Refused("unsupported", "a model server cannot go on in the middle of JSON: ask again") from None
        return "stop"

    def accept(self, token: int, logprob: TokenLogprob | None) -> None:
        self.answer.append(token)
        self._deliver(self.text.push(token, logprob))

    def finish(self, reason: FinishReason) -> Outcome:
        self._deliver(self.text.finish())
        if self._held:
            ids = chain.from_iterable(delta.token_ids for delta in self._held)
            logprobs = chain.from_iterable(delta.logprobs for delta in self._held)
            self._on_delta(Delta(tuple(ids), "".join(delta.text for delta in self._held), tuple(logprobs)))
        return Outcome(reason, self.text.text, len(self.request.prompt), len(self.answer), self.cached_tokens)

    def _deliver(self, delta: Delta | None) -> None:
        if delta is None:
            return
        if self.request.sampling.json_schema is None:
            self._on_delta(delta)
        else:  # a server's grammar begins where its answer does: JSON of which a part is out could not be resumed
            self._held.append(delta)


class RemoteEngine:
    """An `Engine` over a model server.

    url: the API's root, such as `http://vllm:8000/v1`. model: the server's name for it; empty takes the first that it
    lists. adapters_folder: where the server finds adapters, each in a folder named by its digest.
    first_token_s, next_token_s: how long the server may be silent before and within an answer, in seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        context_tokens: int,
        batch_limit: int,
        adapters_folder: Path,
        api_key: str = "",
        model: str = "",
        first_token_s: float = 120.0,
        next_token_s: float = 30.0,
    ) -> None:
        self._server = ModelServer(
            url,
            api_key=api_key,
            model=model,
            tokenizer=tokenizer,
            stop_ids=stop_ids,
            context_tokens=context_tokens,
            adapters_folder=adapters_folder,
        )
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._context_tokens = context_tokens
        self._batch_limit = batch_limit
        self._first_token_s = first_token_s
        self._next_token_s = next_token_s
        self._breaker = Breaker()
        self._slots = asyncio.Semaphore(batch_limit)
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._gate = Lock()  # between submit and close
        self._closed = False
        self._thread: Thread | None = None
        self._generations: set[RemoteGeneration] = set()
        self._counts: Counter[str] = Counter()
        self._tick_due: float | None = None  # by time.monotonic(); None while the loop does not run

    # --- from any thread ---

    def submit(self, request: GenerateRequest, on_delta: Callable[[Delta], None]) -> RemoteGeneration:
        sampling = request.sampling
        if not request.prompt or sampling.max_tokens < 1 or "" in sampling.stop:
            raise Refused("invalid_request", "a request needs a prompt, max_tokens above 0 and stop strings with text")
        check_length(request, self._context_tokens)
        generation = RemoteGeneration(request, on_delta, self._tokenizer.token_bytes, self._loop)
        with self._gate:
            if self._closed:
                raise EngineStopped("the engine was stopped")
            self._loop.call_soon_threadsafe(self._begin, generation)
        return generation

    def score(self, request: ScoreRequest) -> Handle[Scores]:
        raise Refused("unsupported", "model servers tell no log-probabilities of given texts: use LYO_ENGINE=local")

    @property
    def model(self) -> str:
        """The server's name for its model; empty while it has not been found out."""
        return self._server.model

    @property
    def url(self) -> str:
        """For people: it has no password."""
        return self._server.url

    @property
    def context_tokens(self) -> int:
        """The server's limit once it is known, and never more than was configured."""
        return self._server.context_tokens

    def stats(self) -> EngineStats:
        generations = tuple(self._generations)
        running = sum(generation.running for generation in generations)
        due = self._tick_due
        return EngineStats(
            waiting=len(generations) - running,
            running=running,
            tokens_generated=self._counts["tokens"],
            batch_limit=self._batch_limit,
            prompt_tokens=self._counts["prompt_tokens"],
            cached_tokens=self._counts["cached_tokens"],
            crashes=self._counts["crashes"],
            step_seconds=max(0.0, time.monotonic() - due) if due is not None else 0.0,
            trouble=str(self._breaker.cause or ""),
        )

    def start(self) -> None:
        """Speak to the server on a thread of the engine's own."""
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with self._gate:
            if not self._closed:
                self._closed = True
                self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread:
            self._thread.join()

    # --- on the engine's thread ---

    def _run(self) -> None:
        self._tick()
        self._loop.run_until_complete(self._serve())
        self._tick_due = None
        self._loop.close()

    def _tick(self) -> None:
        """Show that the loop runs; one that stands still shows it by the tick that is overdue."""
        self._tick_due = time.monotonic() + TICK_S
        self._loop.call_later(TICK_S, self._tick)

    async def _serve(self) -> None:
        async with self._server.client:
            await self._stopping.wait()
            tasks = [generation.task for generation in self._generations]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, generation: RemoteGeneration) -> None:
        self._generations.add(generation)
        generation.task = self._loop.create_task(self._generate(generation))
        generation.task.add_done_callback(lambda _: self._end(generation))

    def _end(self, generation: RemoteGeneration) -> None:
        """Report how a request ended. Its task cannot: one that is cancelled before it starts does not run at all."""
        self._generations.discard(generation)
        task = generation.task
        try:
            if task.cancelled() and not generation.cancelled:
                raise EngineStopped("the engine was stopped")
            generation.future.set_result(generation.finish("cancelled" if task.cancelled() else task.result()))
        except (Refused, EngineStopped) as error:
            generation.future.set_exception(error)
        except Exception as cause:
            self._counts["crashes"] += 1
            crash = EngineCrashed(f"request {generation.request.id}: {cause}")
            crash.__cause__ = cause
            generation.future.set_exception(crash)

    async def _generate(self, generation: RemoteGeneration) -> FinishReason:
        """Answer in turn and before the deadline, even if the server is away for a while."""
        if reason := generation.resumed_reason():
            return reason
        deadline = generation.request.deadline
        try:
            async with asyncio.timeout_at(deadline and self._loop.time() + deadline - time.time()), self._slots:
                generation.running = True
                return await self._insist(generation)
        except TimeoutError:
            trouble = generation.trouble or self._breaker.cause
            if trouble and not generation.begun:
                logger.warning("request %s: %s until the deadline", generation.request.id, str(trouble))
                raise Refused("remote_unavailable", "the model server was unavailable until the deadline") from None
            made = len(generation.answer)
            raise Refused("deadline_exceeded", f"the deadline passed after {made} tokens of the answer") from None

    async def _insist(self, generation: RemoteGeneration) -> FinishReason:
        """Try again, while nothing of the answer has come, with exponential backoff and full jitter."""
        for tries in count():
            await self._breaker.passage()
            try:
                reason = await self._attempt(generation)
                self._breaker.succeeded()
                return reason
            except Refused:
                self._breaker.succeeded()
                raise
            except Unavailable as error:
                if generation.begun:
                    raise
                generation.trouble = error
                if not error.busy:
                    self._breaker.failed(error)
                    self._server.facts = None  # another server may come back
                limit = min(BACKOFF_LIMIT_S, BACKOFF_S * 2 ** min(tries, 10))
                await asyncio.sleep(max(error.retry_after, random.uniform(0, limit)))  # noqa: S311
        raise AssertionError("count() does not end")

    async def _attempt(self, generation: RemoteGeneration) -> FinishReason:
        """Ask once, and read the answer to its end. A silent server is `Unavailable`, as is one that breaks off."""
        reason: FinishReason | None = None
        try:
            async with (
                asyncio.timeout(self._first_token_s) as silence,
                aclosing(self._server.answer(generation.request)) as chunks,
            ):
                async for chunk in chunks:
                    silence.reschedule(self._loop.time() + self._next_token_s)
                    if reason and chunk.tokens:
                        break  # the server goes on past the end; closing its stream stops it
                    reason = self._read(generation, chunk, reason)
        except TimeoutError:
            if reason is None:
                raise Unavailable("was silent for too long") from None
        except Unavailable:
            if reason is None:
                raise
        if reason is None:
            raise Unavailable("broke its answer off")
        return reason

    def _read(self, generation: RemoteGeneration, chunk: Chunk, reason: FinishReason | None) -> FinishReason | None:
        """Take a part of the answer; returns why it is complete, if it is."""
        if chunk.tokens and not generation.begun:
            generation.begun = True
            self._breaker.succeeded()
            self._counts["prompt_tokens"] += len(generation.request.prompt)
        for token, logprob in chunk.tokens:
            if token in self._stop_ids:
                return "stop"
            self._counts["tokens"] += 1
            generation.accept(token, logprob)
            if generation.finish_reason:
                return generation.finish_reason
        if chunk.cached_tokens:
            generation.cached_tokens = chunk.cached_tokens
            self._counts["cached_tokens"] += chunk.cached_tokens
        if reason or chunk.finish_reason is None:
            return reason
        try:
            return FINISH_REASONS[chunk.finish_reason]
        except KeyError:
            raise Unavailable(f"ended an answer with {chunk.finish_reason!r}") from None
