"""Whatever comes in whatever order: every request ends once, rightly, and the batch is empty afterwards."""

from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.fakes import FakeModel, answer, fake_engine, next_token, text
from workers.engine.request import Generation, Scoring, Ticket
from workers.protocols import EngineCrashed, GenerateRequest, Refused, Sampling, ScoreRequest

arrival = st.tuples(
    st.just("submit"),
    st.lists(st.integers(0, 49), min_size=1, max_size=40).map(tuple),
    st.integers(1, 300),  # max_tokens
    st.integers(0, 5),  # tokens delivered by an earlier attempt
    st.integers(-1, 1),  # priority
    st.none() | st.integers(0, 30),  # seconds to the deadline
)
scoring = st.tuples(
    st.just("score"),
    st.lists(st.integers(0, 49), min_size=1, max_size=40).map(tuple),
    st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=60).map(tuple), min_size=1, max_size=12).map(tuple),
    st.none() | st.integers(0, 30),
)
event = st.one_of(
    arrival,
    scoring,
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("step"), st.integers(1, 10)),
    st.tuples(st.just("pass"), st.integers(1, 10)),
    st.tuples(st.just("crash"), st.integers(1, 5)),
    st.tuples(st.just("cache crash"), st.integers(1, 5)),
)


def expected_scores(request: ScoreRequest) -> list[list[int]]:
    """0 where a token is the one that follows, else -100."""
    return [
        [0 if next_token((*request.prefix, *tokens[:i])) == token else -100 for i, token in enumerate(tokens)]
        for tokens in request.continuations
    ]


@settings(max_examples=150, deadline=None)
@given(events=st.lists(event, max_size=40))
def test_every_request_ends_once_and_no_row_leaks(events: list[tuple]) -> None:
    model, now = FakeModel(capacity=4 * 256), 1000.0
    engine = fake_engine(model, batch_limit=3)
    tickets: list[Ticket] = []
    endings: list[Ticket] = []

    def ending(method):
        def once(self: Ticket, *values: object) -> None:
            before = self.done
            method(self, *values)
            if self.done and not before:
                endings.append(self)

        return once

    with (
        patch("workers.engine.loop.time.time", lambda: now),
        patch.object(Generation, "finish", ending(Generation.finish)),
        patch.object(Scoring, "finish", ending(Scoring.finish)),
        patch.object(Ticket, "fail", ending(Ticket.fail)),
    ):
        for kind, *values in events:
            match kind, values:
                case "submit", (prompt, max_tokens, delivered, priority, left):
                    request = GenerateRequest(
                        id=str(len(tickets)),
                        prompt=prompt,
                        sampling=Sampling(max_tokens, temperature=0),
                        delivered=tuple(answer(prompt, max_tokens)[:delivered]),
                        deadline=None if left is None else now + left,
                        priority=priority,
                    )
                    tickets.append(engine.submit(request, lambda _: None))
                case "score", (prefix, continuations, left):
                    deadline = None if left is None else now + left
                    tickets.append(engine.score(ScoreRequest(str(len(tickets)), prefix, continuations, (), deadline)))
                case "cancel", (number,) if number < len(tickets):
                    tickets[number].cancel()
                case "step", (count,):
                    for _ in range(count):
                        engine.step()
                case "pass", (seconds,):
                    now += seconds
                case "crash", (steps,):
                    model.fails_in = steps
                case "cache crash", (changes,):
                    model.storage.fails_in = changes
        model.fails_in = model.storage.fails_in = -1
        while engine.step():
            assert engine.stats().running <= 3

    assert sorted(endings, key=id) == sorted(tickets, key=id)
    assert (engine.stats().running, engine.stats().waiting, engine.stats().kv_tokens) == (0, 0, 0)
    for ticket in tickets:
        try:
            outcome = ticket.wait(0)
        except Refused as refused:
            if refused.code == "cancelled":
                assert ticket.cancelled
            else:
                assert refused.code == "deadline_exceeded"
                assert ticket.request.deadline <= now
        except EngineCrashed:
            assert any("crash" in kind for kind, *_ in events)
        else:
            if isinstance(ticket, Scoring):
                assert [list(map(round, row)) for row in outcome.logprobs] == expected_scores(ticket.request)
                continue
            expected = answer(ticket.request.prompt, ticket.request.sampling.max_tokens)
            if outcome.finish_reason == "cancelled":
                assert ticket.cancelled
                assert text(expected).startswith(outcome.text)
            else:
                assert outcome.text == text(expected)
