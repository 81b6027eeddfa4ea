"""The engine's promises, on a fake model: who runs when, and how every request ends."""

import time
from collections.abc import Sequence
from itertools import product
from threading import Event
from typing import Any

import pytest
from torch import Tensor

from tests.helpers import until
from tests.workers.conftest import Hang, assert_seen, run
from tests.workers.fakes import STOP_ID, VOCABULARY, FakeModel, answer, fake_engine, next_token, text
from workers.engine.attention import Read
from workers.engine.cache import RowCache
from workers.protocols import Delta, EngineCrashed, EngineStopped, GenerateRequest, Refused, Sampling, ScoreRequest

PAIRS = list(product(range(VOCABULARY), repeat=2))


def request(prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 8, logprobs: int | None = None, **fields: Any):
    sampling = Sampling(max_tokens, temperature=0, stop=fields.pop("stop", ()), logprobs=logprobs)
    return GenerateRequest(id=str(prompt), prompt=prompt, sampling=sampling, **fields)


def ignore(delta: Delta) -> None:
    pass


def long_prompt(max_tokens: int) -> tuple[int, ...]:
    """A prompt whose answer has no early stop."""
    return next(prompt for prompt in PAIRS if len(answer(prompt, max_tokens)) == max_tokens)


def test_requests_that_join_and_leave_at_different_steps_get_their_own_answers() -> None:
    engine, handles = fake_engine(batch_limit=3), {}
    for n in range(12):
        prompt = (n, n + 1, n + 2)
        handles[prompt] = engine.submit(request(prompt, max_tokens=3 + 5 * (n % 4)), ignore)
        engine.step()
    run(engine)
    for prompt, handle in handles.items():
        outcome = handle.wait(0)
        expected = answer(prompt, handle.request.sampling.max_tokens)
        assert outcome.text == text(expected)
        assert outcome.completion_tokens == len(expected)
        assert outcome.finish_reason == ("length" if len(expected) == handle.request.sampling.max_tokens else "stop")


@pytest.mark.parametrize("ending", list(product([3, 6], repeat=4)))
def test_any_rows_may_end_in_the_same_step(ending: tuple[int, ...]) -> None:
    engine, prompts = fake_engine(batch_limit=4), [p for p in PAIRS if len(answer(p, 6)) == 6][:4]
    handles = [
        engine.submit(request(prompt, max_tokens), ignore) for prompt, max_tokens in zip(prompts, ending, strict=True)
    ]
    run(engine)
    texts = [text(answer(prompt, max_tokens)) for prompt, max_tokens in zip(prompts, ending, strict=True)]
    assert [handle.wait(0).text for handle in handles] == texts


def test_the_deltas_are_the_answer() -> None:
    engine, deltas = fake_engine(), []
    handle = engine.submit(request(max_tokens=20), deltas.append)
    run(engine)
    assert "".join(delta.text for delta in deltas) == handle.wait(0).text
    assert [token for delta in deltas for token in delta.token_ids] == answer((1, 2, 3), 20)


def test_a_stop_string_ends_the_request() -> None:
    engine = fake_engine()
    tokens = answer(long_prompt(20), 20)
    handle = engine.submit(request(long_prompt(20), max_tokens=20, stop=(f" {tokens[5]} {tokens[6]} ",)), ignore)
    run(engine)
    assert handle.wait(0).finish_reason == "stop"
    assert handle.wait(0).text == text(tokens[:5]).rstrip()


@pytest.mark.parametrize("delivered", range(21))
def test_a_resumed_request_goes_on_as_if_it_had_not_stopped(delivered: int) -> None:
    engine, deltas, prompt = fake_engine(), [], long_prompt(20)
    tokens = answer(prompt, 20)
    handle = engine.submit(request(prompt, 20, delivered=tuple(tokens[:delivered]), logprobs=1), deltas.append)
    run(engine)
    outcome = handle.wait(0)
    assert (outcome.finish_reason, outcome.text, outcome.completion_tokens) == ("length", text(tokens), 20)
    assert [token for delta in deltas for token in delta.token_ids] == tokens[delivered:]


def test_a_resumed_request_that_had_reached_its_stop_string_generates_nothing() -> None:
    engine, prompt = fake_engine(), long_prompt(20)
    tokens = answer(prompt, 4)
    handle = engine.submit(request(prompt, 20, stop=(f"{tokens[3]} ",), delivered=tuple(tokens)), ignore)
    run(engine)
    assert handle.wait(0).text == text(tokens[:3])
    assert engine.stats().tokens_generated == 0


def test_a_cancelled_request_keeps_its_text_so_far() -> None:
    engine, prompt = fake_engine(), long_prompt(50)
    running = engine.submit(request(prompt, 50), ignore)
    engine.step()
    engine.step()
    running.cancel()
    waiting = engine.submit(request(prompt, 50), ignore)
    waiting.cancel()
    engine.step()
    assert running.wait(0).finish_reason == waiting.wait(0).finish_reason == "cancelled"
    assert running.wait(0).text == text(answer(prompt, 50)[:2])
    assert waiting.wait(0).text == ""
    assert engine.step() is False


def test_a_deadline_ends_running_and_waiting_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, prompt = fake_engine(batch_limit=1), long_prompt(50)
    running, waiting = (engine.submit(request(prompt, 50, deadline=time.time() + 60), ignore) for _ in range(2))
    engine.step()
    later = time.time() + 61
    monkeypatch.setattr("workers.engine.loop.time.time", lambda: later)
    engine.step()
    for handle in (running, waiting):
        with pytest.raises(Refused) as refused:
            handle.wait(0)
        assert refused.value.code == "deadline_exceeded"
    assert engine.stats().running == engine.stats().waiting == 0


def test_a_crash_fails_the_batch_with_its_cause_and_the_engine_goes_on() -> None:
    model = FakeModel()
    engine, prompt = fake_engine(model, batch_limit=2), long_prompt(20)
    first, second, third = (engine.submit(request(prompt, 20), ignore) for _ in range(3))
    engine.step()
    model.fails_in = 1
    engine.step()
    for handle in (first, second):
        with pytest.raises(EngineCrashed) as crashed:
            handle.wait(0)
        assert "out of memory" in str(crashed.value.__cause__)
    run(engine)
    assert third.wait(0).text == text(answer(prompt, 20))
    assert engine.stats().crashes == 1


def test_a_receiver_that_fails_ends_its_own_request_only() -> None:
    def fail(delta: Delta) -> None:
        raise ConnectionError("gone")

    engine, prompt = fake_engine(), long_prompt(20)
    bad, good = engine.submit(request(prompt, 20), fail), engine.submit(request(prompt, 20), ignore)
    run(engine)
    with pytest.raises(EngineCrashed, match="gone"):
        bad.wait(0)
    assert good.wait(0).text == text(answer(prompt, 20))


def test_more_urgent_requests_go_first_and_equals_in_order_of_arrival() -> None:
    engine, order = fake_engine(batch_limit=1), []
    for name, priority in (("batch", 5), ("first", 0), ("second", 0), ("urgent", -1)):
        engine.submit(request((len(name),), 1, priority=priority), lambda _, name=name: order.append(name))
    run(engine)
    assert order == ["urgent", "first", "second", "batch"]


def test_a_long_prompt_is_read_in_pieces_while_answers_go_on() -> None:
    model = FakeModel()
    engine, prompt = fake_engine(model), long_prompt(50)
    running = engine.submit(request(prompt, 50), ignore)
    engine.step()
    long = tuple(n % 7 for n in range(700))
    late = engine.submit(request(long, 5), ignore)
    for _ in range(3):
        engine.step()
    assert [[len(read.tokens) for read in reads] for reads in model.passes[1:]] == [[1, 256], [1, 256], [1, 188]]
    run(engine)
    assert running.wait(0).text == text(answer(prompt, 50))
    assert late.wait(0).text == text(answer(long, 5))


def test_what_was_computed_before_is_not_computed_again() -> None:
    model = FakeModel()
    engine, system = fake_engine(model), tuple(n % 11 for n in range(100))
    first = engine.submit(request((*system, 20, 21), 5), ignore)
    run(engine)
    second_turn = (*system, 20, 21, *answer((*system, 20, 21), 5), 30, 31)
    model.passes.clear()
    second = engine.submit(request(second_turn, 5), ignore)
    other = engine.submit(request((*system, 40), 5), ignore)
    run(engine)
    assert first.wait(0).cached_tokens == 0
    assert second.wait(0).cached_tokens == len(system) + 2 + 4  # the last token of an answer is never read
    assert other.wait(0).cached_tokens == len(system)
    assert [len(read.tokens) for read in model.passes[0]] == [3, 1]
    assert second.wait(0).text == text(answer(second_turn, 5))
    assert other.wait(0).text == text(answer((*system, 40), 5))
    assert (engine.stats().prompt_tokens, engine.stats().cached_tokens) == (102 + 109 + 101, 106 + 100)


def test_an_adapters_keys_and_values_are_not_anothers() -> None:
    model = FakeModel()
    cache, tokens = RowCache(model.storage, model.capacity), list(range(40))
    row = cache.open(50, "a@1")
    model.storage.slot(row.place)[:] = row.tokens[:] = tokens
    cache.close(row)
    assert cache.reuse(cache.open(50, "a@1"), tokens) == 39
    assert cache.reuse(cache.open(50, "b@2"), tokens) == 0
    assert cache.reuse(cache.open(50, None), tokens) == 0


def test_scores_are_the_log_probabilities_of_each_token() -> None:
    engine, prefix = fake_engine(), (3, 1, 4)
    right = answer(prefix, 4)
    wrong = [right[0], (right[1] + 1) % VOCABULARY, *right[2:]]
    scores = engine.score(ScoreRequest("s", prefix, (tuple(right), tuple(wrong), (right[0],))))
    run(engine)
    logprobs = scores.wait(0).logprobs
    sure, impossible = pytest.approx(0, abs=1e-6), pytest.approx(-100, abs=1e-3)
    assert list(logprobs[0]) == [sure] * 4
    assert list(logprobs[1][:2]) == [sure, impossible]
    assert list(logprobs[2]) == [sure]


def test_labels_are_scored_after_each_continuation() -> None:
    engine, prefix = fake_engine(), (3, 1, 4)
    ends = ((), (5,), (6, 7))
    labels = tuple(next_token((*prefix, *end)) for end in ends)
    scores = engine.score(ScoreRequest("s", prefix, ends, labels))
    run(engine)
    for index, row in enumerate(scores.wait(0).logprobs):
        assert [value > -1 for value in row] == [label == labels[index] for label in labels]


def test_many_continuations_share_one_reading_of_the_prefix_and_leave_room_for_answers() -> None:
    model = FakeModel(capacity=16 * 256)
    engine, prompt = fake_engine(model), long_prompt(50)
    prefix = tuple(n % 13 for n in range(300))
    scores = engine.score(ScoreRequest("s", prefix, tuple((n % 50, 1, 2, 3, 4) for n in range(200))))
    running = engine.submit(request(prompt, 20), ignore)
    run(engine)
    read = [read for reads in model.passes for read in reads]
    assert sum(len(r.tokens) for r in read if not r.branches and r.place.length == 1024) == 300
    assert all(len(r.tokens) <= 64 for reads in model.passes for r in reads if r.branches and len(reads) > 1)
    assert [len(row) for row in scores.wait(0).logprobs] == [5] * 200
    assert running.wait(0).text == text(answer(prompt, 20))


def test_continuations_that_fit_one_by_one_are_scored_in_as_many_passes_as_it_takes() -> None:
    engine = fake_engine(FakeModel(capacity=512), context_tokens=512)
    handle = engine.score(ScoreRequest("s", (1,) * 450, ((2, 3),) * 100))
    run(engine)
    assert len(handle.wait(0).logprobs) == 100


def test_a_request_that_runs_alone_has_no_neighbours() -> None:
    model = FakeModel()
    engine = fake_engine(model)
    asked = [
        engine.submit(GenerateRequest(str(n), (n, 7), Sampling(5, temperature=0), alone=n == 1), lambda _: None)
        for n in range(4)
    ]
    run(engine)
    assert [handle.wait(0).text for handle in asked] == [text(answer((n, 7), 5)) for n in range(4)]
    together = {frozenset(read.place for read in reads) for reads in model.passes if len(reads) > 1}
    assert {len(places) for places in together} == {2}  # the last two


def test_a_cancelled_request_ends_even_where_its_row_cannot_be_freed() -> None:
    model = FakeModel()
    engine = fake_engine(model)
    cancelled, beside = (
        engine.submit(GenerateRequest(str(n), (n, 7), Sampling(50, temperature=0)), lambda _: None) for n in range(2)
    )
    engine.step()
    cancelled.cancel()
    model.storage.fails_in = 1
    run(engine)
    assert cancelled.wait(0).finish_reason == "cancelled"
    with pytest.raises(EngineCrashed, match="out of memory"):
        beside.wait(0)


def test_a_cancelled_score_is_refused() -> None:
    engine = fake_engine()
    scores = engine.score(ScoreRequest("s", (1, 2), ((3,),)))
    scores.cancel()
    engine.step()
    with pytest.raises(Refused, match="cancelled"):
        scores.wait(0)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (ScoreRequest("s", (), ((1,),)), "invalid_request"),
        (ScoreRequest("s", (1,), ()), "invalid_request"),
        (ScoreRequest("s", (1,), ((),)), "invalid_request"),
        (ScoreRequest("s", (1,), ((VOCABULARY,),)), "invalid_request"),
        (ScoreRequest("s", (1,), ((2,) * 600,)), "context_length_exceeded"),
    ],
)
def test_what_can_never_be_scored_is_refused_at_once(bad: ScoreRequest, code: str) -> None:
    with pytest.raises(Refused) as refused:
        fake_engine(FakeModel(capacity=2 * 256)).score(bad)
    assert refused.value.code == code


def test_a_model_that_fails_again_and_again_ends_the_engine() -> None:
    model, broken = FakeModel(), Event()
    model.forward = lambda reads: 1 / 0
    engine = fake_engine(model, batch_limit=1)
    for _ in range(4):
        engine.submit(request(), ignore)
    engine.start(on_broken=broken.set)
    assert broken.wait(5)
    with pytest.raises(EngineStopped):
        engine.submit(request(), ignore)


def test_an_idle_engine_gives_the_memory_of_its_cache_back_and_answers_as_before() -> None:
    model = FakeModel()
    engine = fake_engine(model, idle_s=0.05)
    engine.start()
    first = engine.submit(request(), ignore).wait(5)
    until(lambda: not any(model.storage.arenas.values()))
    assert engine.stats().kv_retained_tokens == 0
    assert engine.submit(request(), ignore).wait(5) == first
    engine.close()


def test_the_step_under_way_is_timed_so_that_one_without_end_is_seen() -> None:
    model, hang = FakeModel(), Hang()
    forward = model.forward

    def forward_late(reads: Sequence[Read]) -> Tensor:
        hang()
        return forward(reads)

    model.forward = forward_late
    engine = fake_engine(model)
    assert engine.stats().step_seconds == 0
    engine.start()
    assert_seen(engine, hang, engine.submit(request(), ignore))
    engine.close()


def test_what_does_not_fit_beside_the_others_waits_and_is_not_overtaken() -> None:
    engine = fake_engine(FakeModel(capacity=2 * 256), batch_limit=4)
    prompt = long_prompt(300)
    small = engine.submit(request(prompt, 100), ignore)
    large = engine.submit(request(prompt, 300), ignore)
    engine.submit(request(prompt, 100), ignore)
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (1, 2)
    run(engine, until=lambda: small.done)
    run(engine, until=lambda: large.done)
    assert large.wait(0).completion_tokens == 300
    run(engine)


@pytest.mark.parametrize(
    ("bad", "code", "words"),
    [
        (request((1,) * 400, 200), "context_length_exceeded", "512 tokens; 400 of prompt and 200 to generate are 600"),
        (request(()), "invalid_request", "prompt"),
        (request(max_tokens=0), "invalid_request", "max_tokens"),
        (request((VOCABULARY,)), "invalid_request", "from 0 to 49"),
        (request(stop=("",)), "invalid_request", "stop string"),
        (request(adapter="x@1"), "adapter_not_found", "x@1"),
    ],
)
def test_what_can_never_run_is_refused_at_once(bad: GenerateRequest, code: str, words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        fake_engine(FakeModel(capacity=2 * 256 + 9)).submit(bad, ignore)
    assert refused.value.code == code


def test_a_stop_token_gives_no_text() -> None:
    prompt = next(prompt for prompt in PAIRS if len(answer(prompt, 500)) < 500)
    engine, deltas = fake_engine(), []
    handle = engine.submit(request(prompt, 500), deltas.append)
    run(engine)
    assert handle.wait(0).finish_reason == "stop"
    assert STOP_ID not in [token for delta in deltas for token in delta.token_ids]
    assert handle.wait(0).text == text(answer(prompt, 500))


def test_the_thread_serves_at_once_and_stops_in_good_order() -> None:
    engine = fake_engine()
    engine.start()
    assert engine.submit(request(max_tokens=5), ignore).wait(5).text == text(answer((1, 2, 3), 5))
    long = engine.submit(request(long_prompt(200), 200), lambda _: time.sleep(0.01))
    engine.close()
    with pytest.raises(EngineStopped):
        long.wait(0)
    with pytest.raises(EngineStopped):
        engine.submit(request(), ignore)
