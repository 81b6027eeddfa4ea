"""From what learners do to examples, and back to nothing when they want it."""

import json
from datetime import timedelta
from io import BytesIO
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.utils import timezone
from rest_framework.test import APIClient

from apps.training.models import Collection, DataSetVersion, Example, Member
from apps.training.selectors.data import version_list_erased
from apps.training.services import data as services
from apps.training.tasks import collect
from apps.tutor.models import Conversation, Message
from apps.tutor.services import conversation_delete, feedback_withdraw
from apps.users.models import User
from apps.users.services import user_erase, user_export, user_update
from tests.apps.training.conftest import LONG_AGO, Talk, add, rate

pytestmark = pytest.mark.django_db

LATER = LONG_AGO + timedelta(minutes=10)


def collected() -> dict[str, int]:
    return dict(services.examples_collect(source="tutor"))


def rewind() -> None:
    """Have everything collected once more."""
    Collection.objects.update(until=services.EPOCH)


def roles(example: Example) -> list[tuple[str, str, int]]:
    messages = example.content["messages"]
    return [(message["role"], message["content"], message.get("weight", 1)) for message in messages[1:]]


def test_answers_become_masked_conversations_of_which_the_last_turn_is_learnt(ann: User, talk: Talk) -> None:
    first, second = talk(ann, ("I am Annette. 2 + 2?", "Hello Annette: 4"), ("And 3 + 3?", "6"))
    assert collected() == {"added": 2}
    one, two = (Example.objects.get(source_id=answer.id) for answer in (first, second))
    assert roles(one) == [("user", "I am <PERSON>. 2 + 2?", 1), ("assistant", "Hello <PERSON>: 4", 1)]
    assert roles(two) == [
        ("user", "I am <PERSON>. 2 + 2?", 1),
        ("assistant", "Hello <PERSON>: 4", 0),
        ("user", "And 3 + 3?", 1),
        ("assistant", "6", 1),
    ]
    system = two.content["messages"][0]
    assert (system["role"], "mathematics" in system["content"]) == ("system", True)
    assert one.original["messages"][1]["content"] == "I am Annette. 2 + 2?"
    assert one.problem_hash == two.problem_hash
    assert {(e.task, e.subject, e.format, e.state, e.source) for e in (one, two)} == {
        ("tutoring", "math", "chat", "pending", "tutor")
    }
    assert (one.learner, one.consented_at) == (ann, ann.training_consented_at)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("step", ["mask_record", "_overlap", "_near_duplicates"])
def test_nobodys_row_is_locked_while_what_they_said_is_masked_and_compared(
    ann: User, talk: Talk, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    talk(ann, ("I am Annette. 2 + 2?", "Hello Annette: 4"))
    in_transaction, take = [], getattr(services, step)

    def watched(*args: Any) -> Any:
        with psycopg.connect(**connection.get_connection_params()) as other:
            other.execute("SELECT 1 FROM users_user WHERE id = %s FOR UPDATE NOWAIT", [ann.id])
        in_transaction.append(connection.in_atomic_block)
        return take(*args)

    monkeypatch.setattr(services, step, watched)
    assert collected() == {"added": 1}
    assert in_transaction == [False]


@pytest.mark.django_db(transaction=True)
def test_nothing_is_open_while_a_file_is_masked(ann: User, monkeypatch: pytest.MonkeyPatch) -> None:
    in_transaction, mask = [], services.mask_record

    def watched(*args: Any) -> Any:
        in_transaction.append(connection.in_atomic_block)
        return mask(*args)

    monkeypatch.setattr(services, "mask_record", watched)
    lines = json.dumps({"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]})
    services.file_create(user=ann, filename="a.jsonl", stream=BytesIO(lines.encode()))
    assert in_transaction == [False]


def test_a_name_that_changes_while_it_is_masked_is_masked_too(
    ann: User, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    (answer,) = talk(ann, ("I am Zebulon. 2 + 2?", "Hello Zebulon: 4"))
    mask = services.mask_record

    def renamed(record: Any, *args: Any) -> Any:
        User.objects.filter(id=ann.id).update(first_name="Zebulon")
        return mask(record, *args)

    monkeypatch.setattr(services, "mask_record", renamed)
    assert collected() == {"added": 1}
    assert "Zebulon" not in str(Example.objects.get(source_id=answer.id).content)


def test_who_collects_at_the_same_time_collects_nothing_twice(
    ann: User, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk(ann, ("2 + 2?", "4"))
    draft = services._draft
    inner: list[dict[str, int]] = []

    def overtaken(*args: Any) -> Any:
        monkeypatch.setattr(services, "_draft", draft)
        inner.append(collected())
        return draft(*args)

    monkeypatch.setattr(services, "_draft", overtaken)
    assert (collected(), inner) == ({}, [{"added": 1}])
    assert Example.objects.count() == 1


def test_what_was_collected_is_not_collected_again(ann: User, talk: Talk) -> None:
    talk(ann, ("2 + 2?", "4"))
    assert collected() == {"added": 1}
    assert collected() == {}
    rewind()
    assert collected() == {"unchanged": 1}
    talk(ann, ("3 + 3?", "6"), said_at=timezone.now())  # may still be changing
    assert collected() == {}
    assert Example.objects.count() == 1


def test_more_than_fits_into_one_run_is_left_for_the_next(
    ann: User, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "COLLECTING_S", 0)
    for number in range(3):
        talk(ann, (f"{number} + 2?", "?"), said_at=LONG_AGO + timedelta(seconds=number))
    assert collected() == {"added": 2}
    assert collected() == {"unchanged": 1, "added": 1}  # where the last run ended there may have been more
    assert collected() == {}


def test_what_was_said_once_is_masked_once_for_all_answers_that_follow(
    ann: User, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk(ann, *((f"My number is 030 / 234 567 {number}.", "Thank you.") for number in range(10, 40)))
    masked, mask = [], services.mask
    monkeypatch.setattr(services, "mask", lambda text, names: masked.append(text) or mask(text, names))
    assert collected() == {"added": 1, "duplicate": 29}
    assert len(masked) == len(set(masked)) == 30 + 1 + 1  # questions, the one answer, the system's text


def test_a_rating_makes_a_thumb_of_the_answer_and_its_end_a_conversation_again(ann: User, talk: Talk) -> None:
    (answer,) = talk(ann, ("2 + 2?", "5"))
    collected()
    rate(answer, "down", at=LATER)
    assert collected() == {}  # the last run reached further than that
    rewind()
    assert collected() == {"changed": 1}
    example = Example.objects.get()
    assert (example.format, example.content["liked"], example.state) == ("thumb", False, "pending")
    rate(answer, "up", at=LATER)
    rewind()
    assert collected() == {"changed": 1}
    assert Example.objects.get().content["liked"] is True
    feedback_withdraw(message=answer)
    answer.refresh_from_db()
    Message.objects.filter(id=answer.id).update(updated_at=LATER)
    rewind()
    assert collected() == {"changed": 1}
    assert Example.objects.get().format == "chat"


def test_a_change_after_a_version_has_it_changes_nothing(ann: User, talk: Talk, staff: User) -> None:
    (answer,) = talk(ann, ("2 + 2?", "5"))
    collected()
    services.example_review(example=Example.objects.get(), reviewer=staff, decision="approve")
    services.version_build(user=staff, method="supervised", validation_share=0)
    rate(answer, "down")
    rewind()
    assert collected() == {"unchanged": 1}
    assert Example.objects.get().format == "chat"


@pytest.mark.parametrize(
    "change",
    [
        {"training_consented_at": None},
        {"birth_year": None},
        {"birth_year": timezone.now().year - 18},
        {"training_consented_at": LONG_AGO + timedelta(minutes=1)},
    ],
)
def test_nothing_is_collected_without_an_adults_consent_before(ann: User, talk: Talk, change: dict[str, Any]) -> None:
    User.objects.filter(id=ann.id).update(**change)
    talk(ann, ("2 + 2?", "4"))
    assert collected() == {}


def test_what_was_said_before_consent_is_not_in_the_context_either(ann: User, talk: Talk) -> None:
    first, second = talk(ann, ("My secret?", "Hm."), ("2 + 2?", "4"))
    before = ann.training_consented_at - timedelta(seconds=1)
    Message.objects.filter(conversation=first.conversation, position__lt=2).update(created_at=before)
    assert collected() == {"added": 1}
    assert roles(Example.objects.get(source_id=second.id)) == [("user", "2 + 2?", 1), ("assistant", "4", 1)]


def test_unfinished_answers_are_left_out_and_empty_ones_are_invalid(ann: User, talk: Talk) -> None:
    cut, empty = talk(ann, ("2 + 2?", "4"))[0], talk(ann, ("3 + 3?", " "))[0]
    Message.objects.filter(id=cut.id).update(finish_reason="length")
    assert collected() == {"invalid": 1}
    assert empty.finish_reason == "stop"


def test_near_duplicates_are_dropped_and_other_numbers_are_not(ann: User, talk: Talk) -> None:
    long = "please explain to me slowly why the sum of two even numbers is always an even number"
    for question in (f"{long}?", f"{long.upper()}!", f"{long}, 3 times?"):
        talk(ann, (question, "Because 2a + 2b = 2(a + b)."))
    assert collected() == {"added": 2, "duplicate": 1}


def test_one_question_with_ever_different_answers_is_compared_with_some_only(
    ann: User, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "please explain to me slowly why the sum of two even numbers is always an even number"
    answers = ("because of two", "think of pairs", "halves stay whole", "it divides", "try four and six")
    for answer in answers:
        talk(ann, (question, answer))
    assert collected() == {"added": len(answers)}
    compared: list[Any] = []
    sketch = services.ExampleSketch.of
    monkeypatch.setattr(services.ExampleSketch, "of", lambda *args: compared.append(args) or sketch(*args))
    monkeypatch.setattr(services, "COMPARED", 2)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "draw dots in rows"}]
    other = services.example_new(format_="chat", record={"messages": messages})
    assert services._near_duplicates(other) is False
    assert len(compared) == 1 + 2  # itself, and two others


def test_a_problem_of_an_evaluation_set_is_not_collected(ann: User, talk: Talk) -> None:
    line = b'{"instruction": "What is 17 + 25?", "output": "42"}'
    services.evaluation_set_register(name="sums", task="tutoring", stream=BytesIO(line))
    talk(ann, ("What is 17+25?", "42"), ("What is 18 + 25?", "43"))
    talk(ann, ("What is 18 + 25?", "43"))
    assert collected() == {"overlaps": 2, "added": 1}  # in the second the problem is in the context


def test_the_task_collects_from_every_source(ann: User, talk: Talk) -> None:
    talk(ann, ("2 + 2?", "4"))
    collect()
    assert Example.objects.count() == 1


def test_a_run_costs_the_same_for_each_answer(ann: User, talk: Talk, django_assert_num_queries: Any) -> None:
    collected()
    rewind()
    for count in (1, 3):
        for number in range(count):
            talk(ann, (f"{count} + {number}?", "?"))
        with django_assert_num_queries(8 + 6 * count):  # context, evaluations, alike, earlier and same examples, INSERT
            assert collected() == {"added": count}
        rewind()
        Example.objects.all().delete()
        Conversation.objects.all().delete()


# --- withdrawal and erasure ---


@pytest.fixture
def version(ann: User, talk: Talk, staff: User) -> DataSetVersion:
    """Has two examples of Ann's and one of nobody's."""
    talk(ann, ("2 + 2?", "4"))
    talk(ann, ("3 + 3?", "6"))
    collected()
    for example in Example.objects.all():
        services.example_review(example=example, reviewer=staff, decision="approve")
    add("1 + 1?", "2")
    return services.version_build(user=staff, method="supervised", validation_share=0)[0]


def test_erasing_an_account_takes_its_examples_and_ends_the_versions_that_had_them(
    ann: User, version: DataSetVersion, staff: User, desk: APIClient
) -> None:
    untouched = add("9 + 9?", "18", subject="physics")
    other = services.version_build(user=staff, method="supervised", subject="physics", validation_share=0)[0]
    user_erase(user=ann)
    assert not User.objects.filter(id=ann.id).exists()
    assert Example.objects.count() == 2
    assert list(version_list_erased()) == [version]
    assert DataSetVersion.objects.get(id=other.id).erased_at is None
    assert Member.objects.filter(version=version).count() == 3  # hashes tell what it was, and nothing of her
    url = f"/api/v1/training/dataset-versions/{version.id}"
    assert desk.get(url).json()["erased_at"] is not None
    refused = desk.get(f"{url}/records")
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (409, "version_erased")
    again, is_new = services.version_renew(version=version)
    assert (is_new, again.statistics["examples"]) == (True, {"train": 2})
    assert untouched.hash in set(Member.objects.filter(version=again).values_list("hash", flat=True))


def test_taking_back_consent_deletes_what_rested_on_it_and_nothing_returns(
    ann: User, version: DataSetVersion, talk: Talk
) -> None:
    user_update(user=ann, training_consent=False)
    assert Example.objects.filter(learner=ann).count() == 0
    assert list(version_list_erased()) == [version]
    user_update(user=ann, training_consent=True)
    rewind()
    assert collected() == {}


def test_deleting_a_conversation_deletes_its_examples(ann: User, version: DataSetVersion) -> None:
    conversation_delete(conversation=Conversation.objects.get(messages__content="2 + 2?"))
    assert Example.objects.filter(learner=ann).count() == 1
    assert list(version_list_erased()) == [version]


def test_an_export_has_the_learners_examples_as_observed_and_as_masked(ann: User, talk: Talk) -> None:
    talk(ann, ("I am Annette. 2 + 2?", "4"))
    collected()
    (example,) = list(user_export(user=ann)["training_examples"])
    assert example["original"]["messages"][1]["content"] == "I am Annette. 2 + 2?"
    assert example["content"]["messages"][1]["content"] == "I am <PERSON>. 2 + 2?"
    assert user_export(user=ann)["user"]["training_consented_at"] == ann.training_consented_at


# --- consent in the API ---


def test_only_an_adult_can_consent_and_no_is_the_default(ann: User) -> None:
    ada = User.objects.create_user("ada", "ada@example.org")
    client = APIClient()
    client.force_authenticate(ada)
    assert client.get("/api/v1/me").json()["training_consent"] is False
    year = timezone.now().year
    for change in ({}, {"birth_year": year - 18}):
        refused = client.patch("/api/v1/me", {"training_consent": True, **change})
        assert (refused.status_code, refused.json()["errors"][0]["attr"]) == (400, "training_consent")
        ada = User.objects.get(id=ada.id)
        assert (ada.birth_year, ada.training_consent) == (None, False)
        client.force_authenticate(ada)
    assert client.patch("/api/v1/me", {"birth_year": 1899}).json()["errors"][0]["attr"] == "birth_year"
    given = client.patch("/api/v1/me", {"training_consent": True, "birth_year": year - 19})
    assert (given.status_code, given.json()["training_consent"]) == (200, True)
    since = User.objects.get(id=ada.id).training_consented_at
    assert client.patch("/api/v1/me", {"training_consent": True}).status_code == 200
    assert User.objects.get(id=ada.id).training_consented_at == since
    assert client.patch("/api/v1/me", {"training_consent": False}).json()["training_consent"] is False
