"""A learner with an HTTP client, who times what she reads."""

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

PASSWORD = "correct-horse-9-battery"


@dataclass
class Answer:
    """What has come of a stream: grows while it is read."""

    text: str = ""
    offsets: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    ends: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def longest_gap(self) -> float:
        return max((b - a for a, b in zip(self.times, self.times[1:], strict=False)), default=0.0)


class Learner:
    def __init__(self, web: str) -> None:
        name = f"u{uuid.uuid4().hex[:12]}"
        body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
        token = httpx.post(f"{web}/api/v1/auth/register", json=body, timeout=30).raise_for_status().json()["token"]
        self.http = httpx.Client(
            base_url=web,
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(60, read=120),
            limits=httpx.Limits(max_connections=100),
        )

    def converse(self) -> str:
        """The messages' URL of a new conversation."""
        made = self.http.post("/api/v1/tutor/conversations", json={}).raise_for_status()
        return f"/api/v1/tutor/conversations/{made.json()['id']}/messages"

    def ask(self, content: str, **options: Any) -> str:
        """Have a question accepted; returns the job's id."""
        body = {"content": content, "temperature": 0, **options}
        response = self.http.post(self.converse(), json=body)
        assert response.status_code == 202, response.text
        return str(response.json()["job"]["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        return self.http.get(f"/api/v1/jobs/{job_id}").raise_for_status().json()

    def stream(self, content: str, answer: Answer, **options: Any) -> Answer:
        """Ask and read to the end. Where the connection breaks, resume as a browser's EventSource does."""
        body = {"content": content, "temperature": 0, **options}
        head = {"Accept": "text/event-stream"}
        with self.http.stream("POST", self.converse(), json=body, headers=head) as response:
            assert response.status_code == 200, response.read()
            self.read(response, answer)
        return answer

    def read(self, response: httpx.Response, answer: Answer, stop_after: int | None = None) -> None:
        for ident, event, data in events(response):
            if event == "token":
                answer.text += data["text"]
                answer.offsets.append(int(ident))
                answer.times.append(time.monotonic())
            else:
                answer.ends.append((event, data))
            if stop_after is not None and len(answer.offsets) >= stop_after:
                return

    def stream_all(self, questions: list[str], answers: list[Answer], **options: Any) -> ThreadPoolExecutor:
        """Ask all at once, each in a conversation of its own; shut the pool down to wait for the ends."""
        pool = ThreadPoolExecutor(len(questions))
        for question, answer in zip(questions, answers, strict=True):
            pool.submit(self.stream, question, answer, **options)
        return pool


def events(response: httpx.Response) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """`(id, event, data)` of each server-sent event; comments are left out."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
        elif not line:
            if "data" in fields:
                yield fields.get("id", ""), fields.get("event", "message"), json.loads(fields["data"])
            fields = {}
