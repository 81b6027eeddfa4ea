"""The local engine: continuous batching over one model, and the thread that drives it."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Lock, Thread, current_thread

import torch
from torch import Tensor

from workers.engine.attention import Read
from workers.engine.cache import RowCache
from workers.engine.gemma import Gemma, implements
from workers.engine.grammar import Grammars
from workers.engine.linear import multiplies_int8
from workers.engine.lora import Adapters
from workers.engine.model import SlotModel
from workers.engine.modules import Modules
from workers.engine.request import Generation, Piece, Scoring, Ticket
from workers.engine.sampling import SampledRow, likeliest, logsumexp, sample
from workers.engine.scheduler import Scheduler
from workers.engine.text import token_logprob
from workers.models.load import LoadedModel
from workers.protocols import (
    Delta,
    EngineCrashed,
    EngineStats,
    EngineStopped,
    GenerateRequest,
    Refused,
    ScoreRequest,
    TokenLogprob,
)

logger = logging.getLogger(__name__)

READ_TOKENS = 256  # of prompts in one step: bounds how long running answers pause for those that join
SCORE_TOKENS = 64  # of continuations in one step, while there are running answers; each takes a row of logits
CRASHES_IN_A_ROW = 3  # then the device is taken for broken


class LocalEngine:
    """An `Engine` over one model in this process.

    A step is one forward pass: one token of every answer that is being made, and as much of waiting prompts and
    continuations as `READ_TOKENS` allow. Rows join and leave at any step.
    """

    def __init__(
        self,
        model: SlotModel,
        *,
        token_bytes: Callable[[int], bytes],
        stop_ids: frozenset[int],
        capacity: int,
        context_tokens: int,
        batch_limit: int,
        adapters: Adapters | None = None,
        grammars: Grammars | None = None,
        numerics: str = "float32",
        idle_s: float | None = None,
    ) -> None:
        """capacity: of the cache, in tokens. numerics: a name for people, of what the model computes in.

        idle_s: after so long without work the cache's memory is given back; None: never.
        """
        self._idle_s = idle_s
        self.numerics = numerics
        self._model = model
        self._token_bytes = token_bytes
        self._stop_ids = stop_ids
        self._batch_limit = batch_limit
        self._adapters = adapters
        self._grammars = grammars
        self._cache = RowCache(model.storage, capacity)
        self.context_tokens = min(context_tokens, self._cache.longest)
        self._scheduler = Scheduler(self._cache, batch_limit)
        self._running: list[Ticket] = []
        self._inbox: deque[Ticket] = deque()
        self._gate = Lock()  # between submit and close
        self._closed = False
        self._news = Event()
        self._thread: Thread | None = None
        self._counts: Counter[str] = Counter()
        self._seconds = {"prefill": 0.0, "decode": 0.0}
        self._crashes_in_a_row = 0
        self._step_began: float | None = None

    @classmethod
    def over(
        cls,
        loaded: LoadedModel,
        *,
        kv_cache_mb: int,
        context_tokens: int,
        batch_limit: int,
        adapters_folder: Path | None = None,
        max_adapters: int = 8,
        adapters_mb: int = 512,
        max_lora_rank: int = 64,
        idle_s: float | None = None,
    ) -> "LocalEngine":
        """An engine over a loaded model, which it takes over."""
        context_tokens = min(context_tokens, loaded.context_tokens)
        adapters = None
        model: Gemma | Modules
        if implements(loaded.model.config.get_text_config()):
            int8 = multiplies_int8(loaded.model.device) if loaded.int8 is None else loaded.int8
            model = Gemma(loaded.model, context_tokens, loaded.dtype, int8_output=int8)
        else:
            model = Modules(loaded.model, loaded.dtype)
        if loaded.int8 and model.numerics != "int8":
            logger.warning("int8 has no kernels for this model on this device: %s is served", model.numerics)
        if adapters_folder:
            adapters = model.adapters = Adapters(
                model.sites,
                model.dtype,
                model.device,
                folder=adapters_folder,
                model_digest=loaded.digest,
                max_count=max_adapters,
                max_mb=adapters_mb,
                max_rank=max_lora_rank,
            )
        capacity = kv_cache_mb * 2**20 // model.storage.token_bytes
        if capacity < context_tokens:
            needed = -(-context_tokens * model.storage.token_bytes // 2**20)
            logger.warning("the cache holds %d tokens, a context %d: give it %d MiB", capacity, context_tokens, needed)
        return cls(
            model,
            token_bytes=loaded.tokenizer.token_bytes,
            stop_ids=loaded.stop_ids,
            capacity=capacity,
            context_tokens=context_tokens,
            batch_limit=batch_limit,
            adapters=adapters,
            grammars=Grammars(loaded.tokenizer.token_bytes, loaded.tokenizer.encode, model.vocabulary, loaded.stop_ids),
            numerics=model.numerics,
            idle_s=idle_s,
        )

    # --- from any thread ---

    def submit(self, request: GenerateRequest, on_delta: Callable[[Delta], None]) -> Generation:
        sampling = request.sampling
        if not request.prompt or sampling.max_tokens < 1:
            raise Refused(
                "invalid_request", "a request needs a prompt of one token or more, and max_tokens of 1 or more"
            )
        if "" in sampling.stop:
            raise Refused("invalid_request", "a stop string must not be empty")
        self._check_tokens((*request.prompt, *request.delivered))
        self._check_length(len(request.prompt), sampling.max_tokens, "to generate")
        grammar = None
        if sampling.json_schema is not None:
            if self._grammars is None:
                raise Refused("unsupported_schema", "this engine has no grammars")
            grammar = self._grammars.compile(sampling.json_schema)
            grammar.advance(*request.delivered)
        ticket = Generation(request, on_delta, self._token_bytes, grammar, self._news.set)
        self._queue(ticket)
        return ticket

    def score(self, request: ScoreRequest) -> Scoring:
        if not request.prefix or not request.continuations:
            raise Refused("invalid_request", "a request needs a prefix of one token or more, and continuations")
        if not request.labels and not all(request.continuations):
            raise Refused("invalid_request", "without labels every continuation needs a token")
        self._check_tokens((*request.prefix, *request.labels, *(t for tokens in request.continuations for t in tokens)))
        ticket = Scoring(request, min(READ_TOKENS, self.context_tokens - len(request.prefix)), self._news.set)
        self._check_length(len(request.prefix), ticket.longest - len(request.prefix), "of continuations in a pass")
        self._queue(ticket)
        return ticket

    def stats(self) -> EngineStats:
        adapters = Counter(ticket.adapter for ticket in tuple(self._running) if ticket.adapter)
        began = self._step_began
        return EngineStats(
            step_seconds=time.monotonic() - began if began is not None else 0.0,
            waiting=len(self._inbox) + len(self._scheduler),
            running=len(self._running),
            tokens_generated=self._counts["tokens"],
            batch_limit=self._batch_limit,
            prompt_tokens=self._counts["prompt_tokens"],
            cached_tokens=self._counts["cached_tokens"],
            steps=self._counts["steps"],
            prefill_seconds=self._seconds["prefill"],
            decode_seconds=self._seconds["decode"],
            kv_tokens=self._counts["kv_tokens"],
            kv_retained_tokens=self._counts["kv_retained_tokens"],
            kv_capacity_tokens=self._cache.capacity,
            crashes=self._counts["crashes"],
            adapters=self._adapters.stats(adapters) if self._adapters else (),
        )

    def start(self, on_broken: Callable[[], None] = lambda: None) -> None:
        """Drive the engine on a thread of its own, which sleeps while there is nothing to do.

        `on_broken` is called on it, after `close`, when the model fails again and again.
        """
        if self._grammars:  # beside the first requests, so that a worker is back soon
            Thread(target=self._grammars.prepare, name="grammars", daemon=True).start()
        self._thread = Thread(target=self._run, args=[on_broken], name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with self._gate:
            self._closed = True
        self._news.set()
        if self._thread and self._thread is not current_thread():
            self._thread.join()
        for ticket in [*self._running, *self._inbox, *self._scheduler.remove(lambda _: True)]:
            ticket.fail(EngineStopped("the engine was stopped"))
        self._running.clear()
        self._inbox.clear()
        self._cache.clear()

    # --- from the engine's thread ---

    @torch.inference_mode()
    def step(self) -> bool:
        """Do one unit of work; False when there was none. Never raises: a crash fails the requests it concerned."""
        try:
            now = time.time()
            while self._inbox:
                self._scheduler.add(self._inbox.popleft(), now)
            self._drop_unwanted(now)
            self._admit()
            worked = self._pass()
            self._counts["kv_tokens"] = self._cache.taken(running=True)
            self._counts["kv_retained_tokens"] = self._cache.taken(running=False)
        except Exception as cause:
            self._crash(cause)
            return True
        return worked

    def _run(self, on_broken: Callable[[], None]) -> None:
        try:
            while not self._closed and self._crashes_in_a_row < CRASHES_IN_A_ROW:
                self._step_began = time.monotonic()
                worked = self.step()
                self._step_began = None
                if not worked:
                    if not self._news.wait(self._idle_s):
                        self._cache.clear()
                        self._counts["kv_retained_tokens"] = 0
                        self._news.wait()
                    self._news.clear()
        finally:  # a panic in a library's Rust, too, must leave nobody waiting
            if not self._closed:
                logger.critical("the engine stops, after %d failures of the model in a row", self._crashes_in_a_row)
                self.close()
                on_broken()

    # --- the parts of a step ---

    def _admit(self) -> None:
        """Let waiting requests join, the most urgent first, as long as there is room."""
        while ticket := self._scheduler.take(self._running):
            if isinstance(ticket, Generation) and ticket.finish_reason:
                ticket.finish(ticket.finish_reason)  # an earlier attempt died between its last token and its report
                continue
            self._running.append(ticket)
            digest = ticket.adapter and ticket.adapter.rpartition("@")[2]
            ticket.row = self._cache.open(ticket.longest, digest, ticket.sequence)
            ticket.cached_tokens = len(ticket.row.tokens)
            self._counts["cached_tokens"] += ticket.cached_tokens
            self._counts["prompt_tokens"] += len(ticket.sequence)

    def _pass(self) -> bool:
        """One forward pass, and what follows from it."""
        started = time.perf_counter()
        reading = self._next_pieces()
        if not reading:
            return False
        reads = []
        for ticket, piece in reading:
            row = ticket.row
            reads.append(Read(row.place, len(row.tokens), piece.tokens, piece.wanted, piece.branches, ticket.adapter))
        states = self._model.forward(reads)
        for ticket, piece in reading:
            if not piece.branches:
                ticket.row.tokens.extend(piece.tokens)
        wanting = [ticket for ticket, piece in reading if piece.wanted]
        counts = [len(piece.wanted) for _, piece in reading if piece.wanted]
        finite = states.isfinite().all(-1).cpu()
        answers: dict[Generation, Tensor] = {}
        for ticket, part, sound in zip(wanting, states.split(counts), finite.split(counts), strict=True):
            if not sound.all():
                ticket.row.tokens.clear()  # what it has cached is of no use to others
                ticket.fail(not_finite(ticket))
            elif isinstance(ticket, Generation):
                answers[ticket] = part
            elif isinstance(ticket, Scoring):
                self._score(ticket, part)
        if answers:
            self._answer(list(answers), self._model.logits(torch.cat(list(answers.values()))))
        for ticket in [ticket for ticket in self._running if ticket.done]:
            self._leave(ticket)
        self._crashes_in_a_row = 0
        self._counts["steps"] += 1
        kind = "decode" if all(len(piece.tokens) == 1 for _, piece in reading) else "prefill"
        self._seconds[kind] += time.perf_counter() - started
        return True

    def _next_pieces(self) -> list[tuple[Ticket, Piece]]:
        """What each row reads in the next pass: answers go on by a token, the rest of the budget is for new prompts."""
        pieces: list[tuple[Ticket, Piece]] = []
        budget = READ_TOKENS
        answering = False
        for ticket in self._running:
            if len(ticket.sequence) - len(ticket.row.tokens) == 1:
                pieces.append((ticket, Piece(ticket.sequence[-1:], (0,))))
                answering = answering or isinstance(ticket, Generation)
        for ticket in sorted(self._running, key=lambda ticket: ticket.urgency):
            done, total = len(ticket.row.tokens), len(ticket.sequence)
            if total - done == 1 or budget <= 0:
                continue
            if done == 0:
                done = self._cache.reuse(ticket.row, ticket.sequence)
                ticket.cached_tokens = done
                self._counts["cached_tokens"] += done
            if done < total:
                tokens = ticket.sequence[done : done + budget]
                last = done + len(tokens) == total
                piece = Piece(tokens, (len(tokens) - 1,) if last else ())
            elif isinstance(ticket, Scoring):
                piece = ticket.branches(min(budget, SCORE_TOKENS) if answering else budget)
            else:
                raise AssertionError("an answer always has a token to read")
            budget -= len(piece.tokens)
            pieces.append((ticket, piece))
        return pieces

    def _answer(self, tickets: list[Generation], logits: Tensor) -> None:
        """Choose the next token of each. logits: [tickets, vocabulary]."""
        rows = [SampledRow(t.sampling, t.request.prompt, t.answer, t.grammar) for t in tickets]
        chosen = sample(logits, rows)
        self._counts["tokens"] += len(rows)
        for index, (ticket, token) in enumerate(zip(tickets, chosen, strict=True)):
            wanted = ticket.sampling.logprobs
            try:
                if ticket.grammar:
                    ticket.grammar.advance(token)  # a stop too: where the parser gave up, it allows nothing else
            except Refused as refused:
                ticket.fail(refused)
                continue
            if token in self._stop_ids:
                ticket.finish("stop")
                continue
            ticket.accept(token, None if wanted is None else self._logprob(logits[index], token, wanted))
            if ticket.finish_reason:
                ticket.finish(ticket.finish_reason)

    def _logprob(self, logits: Tensor, token: int, count: int) -> TokenLogprob:
        ((own, top),) = likeliest(logits[None], [token], count)
        alternatives = tuple(token_logprob(other, self._token_bytes(other), value) for other, value in top)
        return token_logprob(token, self._token_bytes(token), own, alternatives)

    def _score(self, ticket: Scoring, states: Tensor) -> None:
        """Note the log-probabilities that the states tell; some rows of logits at a time, for each is a megabyte."""
        targets = ticket.targets()
        if targets:
            state, _, token = (torch.tensor(column, device=states.device) for column in zip(*targets, strict=True))
            values = []
            for first in range(0, len(states), SCORE_TOKENS):
                logits = self._model.logits(states[first : first + SCORE_TOKENS])
                here = (state >= first) & (state < first + SCORE_TOKENS)
                rows = state[here] - first
                values.append(logits[rows, token[here]].float() - logsumexp(logits)[rows])
            for (_, continuation, _), value in zip(targets, torch.cat(values).tolist(), strict=True):
                ticket.scores[continuation].append(value)
        if ticket.complete:
            ticket.finish()

    def _drop_unwanted(self, now: float) -> None:
        """End what was cancelled or is past its deadline, waiting or running."""

        def unwanted(ticket: Ticket) -> bool:
            return ticket.cancelled or (ticket.deadline is not None and ticket.deadline <= now)

        dropped = [ticket for ticket in self._running if unwanted(ticket)]
        for ticket in [*dropped, *self._scheduler.remove(unwanted)]:
            if ticket.cancelled:
                ticket.give_up()
            else:
                ticket.fail(Refused("deadline_exceeded", f"the deadline passed after {ticket.progress()}"))
        for ticket in dropped:  # has been told, whatever befalls the cache
            self._leave(ticket)

    def _leave(self, ticket: Ticket) -> None:
        """Take a row out of the batch; what it holds can be used again."""
        self._running.remove(ticket)
        self._cache.close(ticket.row)

    def _crash(self, cause: Exception) -> None:
        """Fail the batch, or what waits if that cannot even start, and begin again with an empty one."""
        logger.exception("engine step failed", exc_info=cause)
        self._counts["crashes"] += 1
        self._crashes_in_a_row += 1
        for ticket in self._running or self._scheduler.remove(lambda _: True):
            error = EngineCrashed(f"the engine failed in request {ticket.id}'s batch: {cause!r}")
            error.__cause__ = cause
            ticket.fail(error)
        self._running.clear()
        try:
            self._cache.clear()
        except Exception:  # a broken device: the next step says so again, until the engine stops
            logger.exception("the cache cannot be cleared")

    # --- what can never run ---

    def _queue(self, ticket: Ticket) -> None:
        if (name := ticket.adapter) is not None:
            if (adapters := self._adapters) is None:
                raise Refused("adapter_not_found", f"adapter {name}: this engine serves no adapters")
            adapters.acquire(name, until=ticket.deadline)
            ticket.future.add_done_callback(lambda _: adapters.release(name))
        with self._gate:
            if self._closed:
                ticket.fail(EngineStopped("the engine was stopped"))
                raise EngineStopped("the engine was stopped")
            self._inbox.append(ticket)
        self._news.set()

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        if not all(0 <= token < self._model.vocabulary for token in tokens):
            raise Refused("invalid_request", f"token ids are from 0 to {self._model.vocabulary - 1}")

    def _check_length(self, prompt: int, more: int, purpose: str) -> None:
        if prompt + more > self.context_tokens:
            raise Refused(
                "context_length_exceeded",
                f"the context holds {self.context_tokens} tokens; {prompt} of prompt and {more} {purpose} are "
                f"{prompt + more}",
            )


def not_finite(ticket: Ticket) -> Exception:
    problem = f"request {ticket.id}: the model computes numbers that are not finite"
    if ticket.adapter:
        return Refused("adapter_refused", f"{problem} with adapter {ticket.adapter}: train it again")
    return EngineCrashed(problem)
