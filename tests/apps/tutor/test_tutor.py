import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync
from django.test import Client
from rest_framework.test import APIClient

from apps.inference.models import Adapter, Outcome
from apps.inference.services import adapter_add, route_promote
from apps.jobs import services as jobs
from apps.jobs.models import Job, State
from apps.tutor.models import Conversation, Message
from apps.users.models import User
from lyo import env
from tests.apps.conftest import PlayedWorker

pytestmark = pytest.mark.django_db(transaction=True)

CONVERSATIONS = "/api/v1/tutor/conversations"
RESULT = {
    "text": "Because 2a + 2b = 2(a + b).",
    "finish_reason": "stop",
    "model": "gemma-3-270m",
    "adapter": None,
    "usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21},
}


def client_of(name: str) -> APIClient:
    client = APIClient()
    client.force_authenticate(User.objects.create_user(name, f"{name}@example.org", "correct-horse-9-battery"))
    return client


@pytest.fixture
def ann() -> APIClient:
    return client_of("ann")


@pytest.fixture
def bob() -> APIClient:
    return client_of("bob")


@pytest.fixture
def talk(ann: APIClient) -> str:
    """The messages' URL of a new conversation of Ann's."""
    made = ann.post(CONVERSATIONS, {"subject": "math", "level": "intermediate"})
    assert made.status_code == 201
    return f"{CONVERSATIONS}/{made.json()['id']}/messages"


def finish(job_id: str, state: State = State.SUCCEEDED, **result: Any) -> None:
    """Do what a worker does with a job."""
    claim = jobs.job_claim(job_id=job_id, worker="test")
    assert claim is not None
    jobs.job_finish(claim=claim, state=state, result={**RESULT, **result})


async def collect(chunks: AsyncIterator[bytes]) -> list[bytes]:
    return [chunk async for chunk in chunks]


def ask(client: APIClient, url: str, content: str = "Why is it even?", **fields: Any) -> dict[str, Any]:
    response = client.post(url, {"content": content, **fields})
    assert response.status_code == 202, response.json()
    return response.json()


def test_an_answer_is_stored_with_who_gave_it_and_is_part_of_the_jobs_result(ann: APIClient, talk: str) -> None:
    turn = ask(ann, talk)
    assert turn["job"] == {"id": turn["job"]["id"], "kind": "chat", "state": "queued", "queue_position": 1}
    assert (turn["message"]["role"], turn["message"]["content"]) == ("assistant", "")
    assert turn["events"] == f"/api/v1/jobs/{turn['job']['id']}/events"
    finish(turn["job"]["id"])
    question, answer = ann.get(talk).json()["results"]
    assert (question["role"], question["content"], question["position"]) == ("user", "Why is it even?", 0)
    assert answer["content"] == RESULT["text"]
    assert (answer["model"], answer["adapter"], answer["finish_reason"]) == ("gemma-3-270m", None, "stop")
    result = ann.get(f"/api/v1/jobs/{turn['job']['id']}").json()["result"]
    assert result == {**RESULT, "message": answer}


def test_a_streamed_answer_ends_with_done_and_the_stored_message(ann: APIClient, talk: str) -> None:
    response = ann.post(talk, {"content": "Why?"}, headers={"Accept": "text/event-stream"})
    assert response.status_code == 200
    assert response["Content-Type"] == "text/event-stream"
    job = Job.objects.get()
    assert job.keep is False
    finish(str(job.id))
    body = b"".join(async_to_sync(collect)(response.streaming_content)).decode()
    events = [dict(line.split(": ", 1) for line in part.splitlines()) for part in body.strip().split("\n\n")][1:]
    assert [event["event"] for event in events] == ["token", "done"]
    assert json.loads(events[0]["data"]) == {"text": RESULT["text"]}
    done = json.loads(events[1]["data"])
    assert done["message"] == ann.get(talk).json()["results"][1]
    assert {key: done[key] for key in ("model", "adapter", "usage")} == {
        key: RESULT[key] for key in ("model", "adapter", "usage")
    }


def test_the_prompt_has_the_system_text_the_answered_turns_and_the_question(ann: APIClient, talk: str) -> None:
    finish(ask(ann, talk, "One?")["job"]["id"], text="First.")
    finish(ask(ann, talk, "Two?")["job"]["id"], state=State.FAILED, text="")
    job = Job.objects.get(id=ask(ann, talk, "Three?", max_tokens=5, temperature=0, seed=3)["job"]["id"])
    system, *turns = job.request["messages"]
    assert system["role"] == "system"
    assert "mathematics" in system["content"]
    assert [(turn["role"], turn["content"]) for turn in turns] == [
        ("user", "One?"),
        ("assistant", "First."),
        ("user", "Three?"),
    ]
    assert job.request["sampling"] == {"max_tokens": 5, "temperature": 0, "seed": 3}
    assert job.request["overflow"] == "drop_oldest"


def test_one_answer_at_a_time_in_a_conversation(ann: APIClient, talk: str) -> None:
    first = ask(ann, talk)
    second = ann.post(talk, {"content": "And now?"})
    assert second.status_code == 409
    assert second.json()["job"] == first["job"]["id"]
    assert Message.objects.count() == 2
    finish(first["job"]["id"])
    ask(ann, talk)


def test_a_repeated_idempotency_key_asks_once(ann: APIClient, talk: str) -> None:
    key = {"Idempotency-Key": "abc"}
    first, again = (ann.post(talk, {"content": "Why?"}, headers=key) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["job"]["id"] == again.json()["job"]["id"]
    other = ann.post(talk, {"content": "Something else"}, headers=key)
    assert (other.status_code, other.json()["errors"][0]["code"]) == (409, "idempotency_key_reused")
    assert Job.objects.count() == 1


def test_a_cancelled_answer_keeps_its_text_and_frees_the_conversation(ann: APIClient, talk: str) -> None:
    job = ask(ann, talk)["job"]["id"]
    cancelled = ann.post(f"/api/v1/jobs/{job}/cancel").json()
    assert (cancelled["state"], cancelled["queue_position"]) == ("cancelled", None)
    ask(ann, talk)


@pytest.mark.parametrize(
    ("body", "attr"),
    [
        ({}, "content"),
        ({"content": ""}, "content"),
        ({"content": " \n "}, "content"),
        ({"content": "x" * 16_001}, "content"),
        ({"content": "a\x00b"}, None),
        ({"content": "hi", "max_tokens": 0}, "max_tokens"),
        ({"content": "hi", "temperature": -1}, "temperature"),
        ({"content": "hi", "temperature": "nan"}, "temperature"),
        ({"content": "hi", "seed": "x"}, "seed"),
        ({"content": "hi", "colour": "red"}, "colour"),
    ],
)
def test_bad_questions_name_the_field_and_change_nothing(
    ann: APIClient, talk: str, body: dict[str, Any], attr: str | None
) -> None:
    response = ann.post(talk, body)
    assert response.status_code == 400
    assert response.json()["errors"][0]["attr"] == attr
    assert (Message.objects.count(), Job.objects.count()) == (0, 0)


def test_a_question_that_can_never_fit_the_context_is_refused(
    ann: APIClient, talk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lyo.env.CONTEXT_TOKENS", 64)
    response = ann.post(talk, {"content": "long " * 1000})
    (error,) = response.json()["errors"]
    assert (response.status_code, error["code"], error["attr"]) == (400, "context_length_exceeded", "content")
    assert ann.get(talk).json()["results"] == []


def test_an_answer_that_can_never_fit_beside_the_tutor_s_own_words_is_refused(
    ann: APIClient, talk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lyo.env.CONTEXT_TOKENS", 300)
    response = ann.post(talk, {"content": "Why?", "max_tokens": 290})
    (error,) = response.json()["errors"]
    assert (response.status_code, error["code"], error["attr"]) == (400, "context_length_exceeded", "content")
    assert "an answer of 290 is asked for" in error["detail"]
    assert (Message.objects.count(), Job.objects.count()) == (0, 0)
    ask(ann, talk, "Why?", max_tokens=200)


def test_a_question_that_the_worker_finds_too_long_leaves_nothing(
    ann: APIClient, talk: str, worker: PlayedWorker
) -> None:
    finish(ask(ann, talk, "One?")["job"]["id"], text="First.")
    second = f"{CONVERSATIONS}/{ann.post(CONVERSATIONS, {'subject': 'math'}).json()['id']}/messages"
    worker.play = lambda run: run.fail("context_length_exceeded", "This takes 70 tokens.")
    key = {"Idempotency-Key": "abc"}
    for url in (talk, second):
        job = ann.post(url, {"content": "Too long?"}, headers=key if url == talk else None).json()["job"]["id"]
        worker.join()
        assert ann.get(f"/api/v1/jobs/{job}").json()["error"]["code"] == "context_length_exceeded"
    assert [turn["content"] for turn in ann.get(talk).json()["results"]] == ["One?", "First."]
    assert ann.get(second).json()["results"] == []
    assert {talk["title"] for talk in ann.get(CONVERSATIONS).json()["results"]} == {"One?", ""}
    (error,) = ann.post(talk, {"content": "Too long?"}, headers=key).json()["errors"]
    assert (error["code"], error["attr"], error["detail"]) == (
        "context_length_exceeded",
        "content",
        "This takes 70 tokens.",
    )
    worker.play = None
    assert Job.objects.get(id=ask(ann, talk, "Two?")["job"]["id"]).request["messages"][-1]["content"] == "Two?"


def test_foreign_and_unknown_rows_are_404(ann: APIClient, bob: APIClient, talk: str) -> None:
    turn = ask(ann, talk)
    conversation = talk.removesuffix("/messages")
    foreign = [
        bob.get(conversation),
        bob.delete(conversation),
        bob.get(talk),
        bob.post(talk, {"content": "hi"}),
        bob.put(f"{talk}/{turn['message']['id']}/feedback", {"rating": "up"}),
        bob.get(f"/api/v1/jobs/{turn['job']['id']}"),
        bob.get(turn["events"]),
        bob.post(f"/api/v1/jobs/{turn['job']['id']}/cancel"),
        ann.get(f"{CONVERSATIONS}/{uuid4()}/messages"),
        ann.get(f"/api/v1/jobs/{uuid4()}"),
    ]
    assert [response.status_code for response in foreign] == [404] * len(foreign)
    assert bob.get("/api/v1/jobs").json()["results"] == []
    assert Job.objects.get().state == State.QUEUED


def test_an_unknown_subject_is_refused_and_the_level_is_the_learners_own(ann: APIClient) -> None:
    refused = ann.post(CONVERSATIONS, {"subject": "alchemy"})
    assert (refused.status_code, refused.json()["errors"][0]["attr"]) == (400, "subject")
    User.objects.update(level="advanced")
    ann.handler._force_user.refresh_from_db()
    assert ann.post(CONVERSATIONS, {}).json()["level"] == "advanced"


def test_feedback_is_one_per_answer_replaced_withdrawn_and_refused_elsewhere(ann: APIClient, talk: str) -> None:
    turn = ask(ann, talk)
    url = f"{talk}/{turn['message']['id']}/feedback"
    assert ann.put(url, {"rating": "up"}).status_code == 409  # not finished
    finish(turn["job"]["id"])
    ann.put(url, {"rating": "up"})
    assert ann.put(url, {"rating": "down", "reason": "wrong sign"}).json() == {"rating": "down", "reason": "wrong sign"}
    assert ann.get(talk).json()["results"][1]["feedback"] == {"rating": "down", "reason": "wrong sign"}
    question = ann.get(talk).json()["results"][0]["id"]
    assert ann.put(f"{talk}/{question}/feedback", {"rating": "up"}).status_code == 409
    assert ann.delete(url).status_code == 204
    assert ann.get(talk).json()["results"][1]["feedback"] is None


def test_a_deleted_conversation_takes_its_messages_and_jobs_and_cancels_its_answer(ann: APIClient, talk: str) -> None:
    ask(ann, talk)
    assert ann.delete(talk.removesuffix("/messages")).status_code == 204
    assert [model.objects.count() for model in (Conversation, Message, Job)] == [0, 0, 0]


def test_lists_cost_the_same_however_long_they_are(ann: APIClient, talk: str, django_assert_num_queries: Any) -> None:
    for number in range(3):
        finish(ask(ann, talk, f"{number}?")["job"]["id"])
    with django_assert_num_queries(2):  # the conversation; its messages with feedback
        assert len(ann.get(talk).json()["results"]) == 6
    with django_assert_num_queries(1):
        assert len(ann.get("/api/v1/jobs").json()["results"]) == 3
    with django_assert_num_queries(1):
        assert len(ann.get(CONVERSATIONS).json()["results"]) == 1


def test_a_bad_last_event_id_is_400(ann: APIClient, talk: str) -> None:
    events = ask(ann, talk)["events"]
    for bad in ("x", "-1", "1.5", "9" * 40):
        assert ann.get(events, headers={"Last-Event-ID": bad}).status_code == 400


def test_staff_can_erase_a_learner_with_conversations_and_a_running_answer(ann: APIClient, talk: str) -> None:
    ask(ann, talk)
    root = Client()
    root.force_login(User.objects.create_superuser("root", "root@example.org", "correct-horse-9-battery"))
    deleted = root.post(f"/admin/users/user/{User.objects.get(username='ann').id}/delete/", {"post": "yes"})
    assert deleted.status_code == 302
    assert (User.objects.count(), Conversation.objects.count(), Job.objects.count()) == (1, 0, 0)


def adapter(suffix: str) -> Adapter:
    return adapter_add(suffix=suffix, digest=uuid4().hex[:16], base_model=env.MODEL, base_digest="b" * 64)


def test_the_route_is_read_when_a_question_is_asked(ann: APIClient, talk: str) -> None:
    general, math = adapter("general"), adapter("math")
    running = ask(ann, talk)
    route_promote(task="tutoring", adapter=general)
    assert Job.objects.get(id=running["job"]["id"]).request["adapter"] is None
    finish(running["job"]["id"])
    for made in (general, math):
        turn = ask(ann, talk)
        assert Job.objects.get(id=turn["job"]["id"]).request["adapter"] == made.name
        finish(turn["job"]["id"], adapter=made.name)
        if made == general:
            route_promote(task="tutoring", subject="math", adapter=math)
    assert ann.get(talk).json()["results"][-1]["adapter"] == math.name


def test_the_first_rating_counts_for_the_adapter_that_answered(ann: APIClient, talk: str) -> None:
    made = adapter("a")
    route_promote(task="tutoring", adapter=made)
    turn = ask(ann, talk)
    finish(turn["job"]["id"], adapter=made.name)
    feedback = f"{talk}/{turn['message']['id']}/feedback"
    for rating in ("up", "down"):
        assert ann.put(feedback, {"rating": rating}).status_code == 200
        outcome = Outcome.objects.get()
        assert (outcome.adapter, outcome.subject, outcome.thumb_up) == (made.digest, "math", True)
    assert ann.delete(feedback).status_code == 204
    assert Outcome.objects.get().thumb_up is True  # it has been looked at
