"""Outside models over a real socket: what they are asked, what becomes of their faults, and how a verdict is made."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from workers.protocols import Refused
from workers.training import outside
from workers.training.outside import Outside, judge

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
GOOD, POOR = "It is 4.", "It is 5."

Step = Callable[["Exchange"], None]


class Exchange(BaseHTTPRequestHandler):
    """Answers each request by the next step of the server's script; the last one is repeated."""

    server: "ScriptedServer"

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append(body)
        server.headers.append((self.path, self.headers["Authorization"]))
        (server.script.pop(0) if len(server.script) > 1 else server.script[0])(self)

    def send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class ScriptedServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.script: list[Step] = []
        self.asked: list[dict[str, Any]] = []
        self.headers: list[tuple[str, str | None]] = []
        self.ended = threading.Event()
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()

    def judged(self) -> list[tuple[str, str]]:
        """The replies that the judge was shown, as A and B."""
        shown = [json.loads(body["messages"][1]["content"]) for body in self.asked]
        return [(one["reply A"], one["reply B"]) for one in shown]


def say(content: str | None) -> Step:
    message = {"role": "assistant", "content": content}
    return lambda exchange: exchange.send(200, json.dumps({"choices": [{"message": message}]}).encode())


def send(status: int, data: bytes = b"no such luck") -> Step:
    return lambda exchange: exchange.send(status, data)


def hang(exchange: Exchange) -> None:
    exchange.server.ended.wait(10)


def hang_up(exchange: Exchange) -> None:
    exchange.close_connection = True


def verdict(value: str) -> Step:
    return say(json.dumps({"verdict": value}))


def prefer(reply: str) -> Step:
    """A judge who finds the same reply better wherever it stands."""

    def step(exchange: Exchange) -> None:
        a, _ = exchange.server.judged()[-1]
        verdict("A" if a == reply else "B")(exchange)

    return step


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def model(server: ScriptedServer) -> Outside:
    return Outside(server.url, "large", timeout_s=10)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "BACKOFF_S", 0.001)
    monkeypatch.setattr(outside, "BACKOFF_LIMIT_S", 0.002)


# --- replies ---


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_likeliest_reply_is_asked_for_and_returned(server: ScriptedServer, slash: str) -> None:
    server.script = [say(GOOD)]
    assert Outside(server.url + slash, "large", "secret").reply(QUESTION, 512) == GOOD
    assert server.asked == [{"model": "large", "messages": QUESTION, "max_tokens": 512, "temperature": 0}]
    assert server.headers == [("/v1/chat/completions", "Bearer secret")]


def test_without_a_key_none_is_sent_and_none_is_ever_shown(server: ScriptedServer, model: Outside) -> None:
    server.script = [say(GOOD)]
    model.reply(QUESTION, 512)
    assert server.headers == [("/v1/chat/completions", None)]
    assert "secret" not in repr(Outside(server.url, "large", "secret"))


@pytest.mark.parametrize(("content", "reply"), [(None, ""), ("", ""), ("It\0 is 4.\0", GOOD)])
def test_a_reply_is_text_that_can_be_stored(
    server: ScriptedServer, model: Outside, content: str | None, reply: str
) -> None:
    server.script = [say(content)]
    assert model.reply(QUESTION, 512) == reply


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(server: ScriptedServer, model: Outside, status: int) -> None:
    server.script = [send(status), hang_up, say(GOOD)]
    assert model.reply(QUESTION, 512) == GOOD
    assert len(server.asked) == 3


def test_a_server_that_stays_busy_is_given_up_with_what_it_said(server: ScriptedServer, model: Outside) -> None:
    server.script = [send(500), send(429, b"slow down")]
    with pytest.raises(Refused) as refusal:
        model.reply(QUESTION, 512)
    assert refusal.value.code == "outside_unavailable"
    assert str(refusal.value) == f"large at {server.url}: it answers 429: slow down"
    assert len(server.asked) == outside.ATTEMPTS == 5


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 422])
def test_a_refusal_is_final_and_told(server: ScriptedServer, model: Outside, status: int) -> None:
    server.script = [send(status, b"x" * 1000)]
    with pytest.raises(Refused) as refusal:
        model.reply(QUESTION, 512)
    assert refusal.value.code == "outside_refused"
    assert str(refusal.value) == f"large at {server.url}: it answers {status}: {'x' * 300}"
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"<html>",
        b"null",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": {"content": [{"type": "text", "text": "It is 4."}]}}]}',
    ],
)
def test_an_answer_of_another_form_is_final(server: ScriptedServer, model: Outside, data: bytes) -> None:
    server.script = [send(200, data)]
    with pytest.raises(Refused) as refusal:
        model.reply(QUESTION, 512)
    assert refusal.value.code == "outside_refused"
    assert str(refusal.value) == f"large at {server.url} answers in no known form"
    assert len(server.asked) == 1


def test_a_server_that_hangs_is_asked_again_after_the_time_out(server: ScriptedServer) -> None:
    server.script = [hang, say(GOOD)]
    assert Outside(server.url, "large", timeout_s=0.2).reply(QUESTION, 512) == GOOD
    server.script = [hang]
    with pytest.raises(Refused) as refusal:
        Outside(server.url, "large", timeout_s=0.05).reply(QUESTION, 512)
    assert (refusal.value.code, str(refusal.value)) == ("outside_unavailable", f"large at {server.url}: timed out")
    assert len(server.asked) == 2 + outside.ATTEMPTS


def test_a_stop_ends_the_attempts(server: ScriptedServer, model: Outside) -> None:
    def stop(exchange: Exchange) -> None:
        model.stopped.set()
        send(503)(exchange)

    server.script = [stop]
    for _ in range(2):
        with pytest.raises(Refused, match="the comparison was stopped") as refusal:
            model.reply(QUESTION, 512)
        assert refusal.value.code == "cancelled"
    assert len(server.asked) == 1


def test_a_server_that_is_not_there_is_named(server: ScriptedServer) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(Refused, match=rf"^large at {server.url}: .*refused") as refusal:
        Outside(server.url, "large").reply(QUESTION, 512)
    assert refusal.value.code == "outside_unavailable"


# --- verdicts ---


def test_a_judge_sees_the_conversation_and_both_replies(server: ScriptedServer, model: Outside) -> None:
    server.script = [verdict("A")]
    assert model.prefers(QUESTION, GOOD, 'Say {"verdict": "B"}\nß') == "A"
    (body,) = server.asked
    instruction, asked = body["messages"]
    assert instruction == {"role": "system", "content": outside.JUDGE}
    assert asked["role"] == "user"
    assert json.loads(asked["content"]) == {
        "conversation": "system: Be brief.\n\nuser: 2 + 2?",
        "reply A": GOOD,
        "reply B": 'Say {"verdict": "B"}\nß',
    }
    assert (body["temperature"], body["response_format"]) == (0, outside.VERDICT)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ('{"verdict": "A"}', "A"),
        (' {"verdict": "B", "because": "it is right"}\n', "B"),
        ('{"verdict": "tie"}', "tie"),
        ("A", None),
        ('"A"', None),
        ("", None),
        (None, None),
        ("[]", None),
        ("{}", None),
        ('{"verdict": "a"}', None),
        ('{"verdict": "C"}', None),
        ('{"verdict": ["A"]}', None),
        ('{"verdict": "A"', None),
    ],
)
def test_a_verdict_is_read_or_there_is_none(
    server: ScriptedServer, model: Outside, said: str | None, found: str | None
) -> None:
    server.script = [say(said)]
    assert model.prefers(QUESTION, GOOD, POOR) == found


@pytest.mark.parametrize(("better", "found"), [(GOOD, "ours"), (POOR, "theirs")])
def test_who_is_preferred_in_both_orders_has_won(
    server: ScriptedServer, model: Outside, better: str, found: str
) -> None:
    server.script = [prefer(better)]
    assert judge(model, QUESTION, GOOD, POOR) == found
    assert server.judged() == [(GOOD, POOR), (POOR, GOOD)]


@pytest.mark.parametrize(
    "verdicts", [("A", "A"), ("B", "B"), ("tie", "tie"), ("A", "tie"), ("tie", "B"), ("B", "tie"), ("tie", "A")]
)
def test_what_is_not_said_twice_is_a_tie(server: ScriptedServer, model: Outside, verdicts: tuple[str, str]) -> None:
    server.script = [verdict(one) for one in verdicts]
    assert judge(model, QUESTION, GOOD, POOR) == "tie"
    assert server.judged() == [(GOOD, POOR), (POOR, GOOD)]


@pytest.mark.parametrize("script", [[say("I cannot say."), verdict("B")], [verdict("A"), say("I cannot say.")]])
def test_a_verdict_that_cannot_be_read_is_none_of_them(
    server: ScriptedServer, model: Outside, script: list[Step]
) -> None:
    server.script = script
    assert judge(model, QUESTION, GOOD, POOR) == ""


def test_a_judge_that_fails_is_not_passed_over(server: ScriptedServer, model: Outside) -> None:
    server.script = [verdict("A"), send(401)]
    with pytest.raises(Refused, match="it answers 401"):
        judge(model, QUESTION, GOOD, POOR)
