from collections.abc import Callable
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.utils import timezone
from rest_framework.test import APIClient

from apps.training.models import Example, File
from apps.training.services import data as services
from apps.tutor.models import Conversation, Feedback, Message
from apps.users.models import Role, User

LONG_AGO = timezone.now() - timedelta(hours=1)  # all that is collected has settled


@pytest.fixture(autouse=True)
def _files_dir(settings: Any, tmp_path: Any) -> None:
    settings.MEDIA_ROOT = tmp_path


@pytest.fixture
def kept(settings: Any, tmp_path: Path) -> Path:
    """The folder where adapters are kept."""
    location = tmp_path / "adapters"
    backend = {"BACKEND": "django.core.files.storage.FileSystemStorage", "OPTIONS": {"location": location}}
    settings.STORAGES = {**settings.STORAGES, "adapters": backend}
    return location


@pytest.fixture
def staff(db: None) -> User:
    """Somebody who may do all with models."""
    user = User.objects.create_user("grace", "grace@example.org", role=Role.STAFF)
    user.user_permissions.set(Permission.objects.filter(content_type__app_label__in=("training", "inference")))
    return user


@pytest.fixture
def desk(staff: User) -> APIClient:
    """The API as staff use it."""
    staff.get_all_permissions()  # kept with the user, so that counts of queries are those of the views
    client = APIClient()
    client.force_authenticate(staff)
    return client


@pytest.fixture
def ann(db: None) -> User:
    """A learner from whom models may learn."""
    return User.objects.create_user(
        "ann",
        "ann@example.org",
        first_name="Annette",
        birth_year=1990,
        training_consented_at=timezone.now() - timedelta(days=1),
    )


Talk = Callable[..., list[Message]]


@pytest.fixture
def talk() -> Talk:
    """Makes a conversation of a learner's: questions and the tutor's answers; returns the answers."""

    def make(learner: User, *turns: tuple[str, str], said_at: Any = LONG_AGO, subject: str = "math") -> list[Message]:
        conversation = Conversation.objects.create(user=learner, subject=subject)
        answers = []
        for position, (question, answer) in enumerate(turns):
            for offset, (role, content) in enumerate((("user", question), ("assistant", answer))):
                message = Message.objects.create(
                    conversation=conversation,
                    position=2 * position + offset,
                    role=role,
                    content=content,
                    finish_reason="stop" if role == "assistant" else "",
                )
                Message.objects.filter(id=message.id).update(created_at=said_at, updated_at=said_at)
            answers.append(message)
        return answers

    return make


def rate(answer: Message, rating: str, at: Any = LONG_AGO) -> None:
    feedback, _ = Feedback.objects.update_or_create(message=answer, defaults={"rating": rating})
    Feedback.objects.filter(id=feedback.id).update(updated_at=at)


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def add(question: str, answer: str = "Because.", **fields: Any) -> Example:
    """An approved example of a conversation, as it would be imported."""
    fields = {"task": "tutoring", "state": "approved", "source": "file", **fields}
    example = services.example_new(format_="chat", record=chat(question, answer), **fields)
    example.save()
    return example


def imported(user: User, *lines: bytes, name: str = "train.jsonl", **fields: Any) -> File:
    return services.file_create(user=user, filename=name, stream=BytesIO(b"\n".join(lines)), **fields)
