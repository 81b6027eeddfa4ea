"""An outside model over HTTP, and what is made of a judge's verdicts."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from workers.protocols import Refused
from workers.training import outside
from workers.training.outside import Outside, judge

ASKED = [{"role": "user", "content": "2 + 2?"}]
Reply = Callable[[dict[str, Any]], tuple[int, Any]]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """Answers as the test's `server.reply` says; keeps what it was asked in `server.seen`."""
    monkeypatch.setattr(outside, "BACKOFF_S", 0.001)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            status, answer = served.reply(body)
            raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    served: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.seen = []
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


def model(server: Any, **fields: Any) -> Outside:
    return Outside(f"http://127.0.0.1:{server.server_port}/v1/", "large", **fields)


def said(content: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content}}]}


def test_what_is_asked_and_what_is_replied(server: Any) -> None:
    server.reply = lambda body: (200, said("Four."))
    assert model(server, api_key="k").reply(ASKED, 7) == "Four."
    assert server.seen == [
        {
            "path": "/v1/chat/completions",
            "key": "Bearer k",
            "model": "large",
            "messages": ASKED,
            "max_tokens": 7,
            "temperature": 0,
        }
    ]


def test_a_busy_server_is_asked_again_and_a_lasting_trouble_is_told(server: Any) -> None:
    answers = iter([(503, b"soon"), (429, b""), (200, said("Four."))])
    server.reply = lambda body: next(answers)
    assert model(server).reply(ASKED, 7) == "Four."
    assert len(server.seen) == 3
    server.reply = lambda body: (503, b"never")
    with pytest.raises(Refused, match=r"large at .*: it answers 503: never") as refused:
        model(server).reply(ASKED, 7)
    assert (refused.value.code, len(server.seen)) == ("outside_unavailable", 3 + outside.ATTEMPTS)


@pytest.mark.parametrize(
    ("status", "answer", "text"),
    [(401, b"no such key", "401: no such key"), (200, b"<html>", "no known form"), (200, {"choices": []}, "no known")],
)
def test_what_asking_again_would_not_mend_is_told_at_once(server: Any, status: int, answer: Any, text: str) -> None:
    server.reply = lambda body: (status, answer)
    with pytest.raises(Refused, match=text) as refused:
        model(server).reply(ASKED, 7)
    assert (refused.value.code, len(server.seen)) == ("outside_refused", 1)


def test_a_server_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "BACKOFF_S", 0.001)
    with pytest.raises(Refused) as refused:
        Outside("http://127.0.0.1:1/v1", "large").reply(ASKED, 7)
    assert refused.value.code == "outside_unavailable"


def preferring(word: str) -> Reply:
    """A judge who prefers the reply in which a word is."""

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        asked = json.loads(body["messages"][1]["content"])
        return 200, said(json.dumps({"verdict": "A" if word in asked["reply A"] else "B"}))

    return reply


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (preferring("ours"), "ours"),
        (preferring("theirs"), "theirs"),
        (lambda body: (200, said('{"verdict": "A"}')), "tie"),  # the place, not the reply
        (lambda body: (200, said('{"verdict": "B"}')), "tie"),
        (lambda body: (200, said('{"verdict": "tie"}')), "tie"),
        (lambda body: (200, said("A, I think")), ""),
        (lambda body: (200, said('{"verdict": "both"}')), ""),
        (lambda body: (200, said(None)), ""),
    ],
)
def test_a_judge_is_asked_in_both_orders(server: Any, reply: Reply, verdict: str) -> None:
    server.reply = reply
    assert judge(model(server), ASKED, "ours", "theirs") == verdict
    shown = [json.loads(seen["messages"][1]["content"]) for seen in server.seen]
    assert [(one["reply A"], one["reply B"]) for one in shown] == [("ours", "theirs"), ("theirs", "ours")]
