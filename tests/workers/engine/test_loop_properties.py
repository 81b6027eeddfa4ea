"""Whatever comes in whatever order: every request ends once, rightly, and the batch is empty afterwards."""

from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.fakes import FakeModel, answer, fake_engine, text
from workers.engine.request import Ticket
from workers.protocols import EngineCrashed, GenerateRequest, Refused, Sampling

arrival = st.tuples(
    st.just("submit"),
    st.lists(st.integers(0, 49), min_size=1, max_size=40).map(tuple),
    st.integers(1, 300),  # max_tokens
    st.integers(0, 5),  # tokens delivered by an earlier attempt
    st.integers(-1, 1),  # priority
    st.none() | st.integers(0, 30),  # seconds to the deadline
)
event = st.one_of(
    arrival,
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("step"), st.integers(1, 10)),
    st.tuples(st.just("pass"), st.integers(1, 10)),
    st.tuples(st.just("crash"), st.integers(1, 5)),
)


@settings(max_examples=150, deadline=None)
@given(events=st.lists(event, max_size=40))
def test_every_request_ends_once_and_no_row_leaks(events: list[tuple]) -> None:
    model, now = FakeModel(capacity=4 * 256), 1000.0
    engine = fake_engine(model, batch_limit=3)
    tickets: list[Ticket] = []
    endings: list[Ticket] = []

    def ending(method):
        def once(self: Ticket, value: object) -> None:
            before = self.done
            method(self, value)
            if self.done and not before:
                endings.append(self)

        return once

    with (
        patch("workers.engine.loop.time.time", lambda: now),
        patch.object(Ticket, "finish", ending(Ticket.finish)),
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
                case "cancel", (number,) if number < len(tickets):
                    tickets[number].cancel()
                case "step", (count,):
                    for _ in range(count):
                        engine.step()
                case "pass", (seconds,):
                    now += seconds
                case "crash", (steps,):
                    model.fails_in = steps
        model.fails_in = -1
        while engine.step():
            assert engine.stats().running <= 3

    assert sorted(endings, key=id) == sorted(tickets, key=id)
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)
    for ticket in tickets:
        expected = answer(ticket.request.prompt, ticket.request.sampling.max_tokens)
        try:
            outcome = ticket.wait(0)
        except Refused as refused:
            assert refused.code == "deadline_exceeded"
            assert ticket.request.deadline <= now
        except EngineCrashed:
            assert any(kind == "crash" for kind, *_ in events)
        else:
            if outcome.finish_reason == "cancelled":
                assert ticket.cancelled
                assert text(expected).startswith(outcome.text)
            else:
                assert outcome.text == text(expected)
