from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import F, QuerySet
from django.db.models.functions import Greatest
from rest_framework.exceptions import NotFound

from apps.common.constants import Subject, Task
from apps.common.examples import Observation
from apps.common.streaming import paged
from apps.tutor.models import Conversation, Feedback, Message
from apps.tutor.prompts import HISTORY, messages_for_model
from apps.users.models import User

SOURCE = "tutor"  # the name of what is observed here


def conversation_list_for_user(*, user: User) -> QuerySet[Conversation]:
    return Conversation.objects.filter(user=user)


def conversation_get_for_user(*, user: User, conversation_id: UUID) -> Conversation:
    """The user's conversation; raises `NotFound` for a foreign or unknown id alike."""
    conversation = Conversation.objects.filter(user=user, id=conversation_id).select_related("user").first()
    if conversation is None:
        raise NotFound
    return conversation


def message_list(*, conversation: Conversation) -> QuerySet[Message]:
    """In the order they were said."""
    return conversation.messages.select_related("feedback")


def message_get_for_user(*, user: User, conversation_id: UUID, message_id: UUID) -> Message:
    message = Message.objects.filter(conversation__user=user, conversation=conversation_id, id=message_id).first()
    if message is None:
        raise NotFound
    return message


def message_data(message: Message) -> dict[str, Any]:
    """A message as plain JSON: what the API shows, and what a job's result keeps."""
    feedback = getattr(message, "feedback", None)
    return {
        "id": str(message.id),
        "position": message.position,
        "role": message.role,
        "content": message.content,
        "finish_reason": message.finish_reason or None,
        "model": message.model or None,
        "adapter": message.adapter,
        "job": str(message.job_id) if message.job_id else None,
        "feedback": {"rating": feedback.rating, "reason": feedback.reason} if feedback else None,
        "created_at": message.created_at.isoformat(),
    }


def conversation_export(user: User) -> Iterator[dict[str, Any]]:
    for conversation in paged(Conversation.objects.filter(user=user), "created_at", "id"):
        yield {
            "id": conversation.id,
            "subject": conversation.subject,
            "level": conversation.level,
            "title": conversation.title,
            "created_at": conversation.created_at,
            "messages": map(message_data, paged(message_list(conversation=conversation), "position")),
        }


# --- what there is to learn from ---


def answer_observe(learners: QuerySet[User], since: datetime, until: datetime) -> Iterator[Observation]:
    """The learners' finished answers since their consent, as conversations or, where they were rated, as thumbs."""
    answers = (
        Message.objects.filter(
            role=Message.Role.ASSISTANT,
            finish_reason="stop",
            conversation__user__in=learners,
            created_at__gte=F("conversation__user__training_consented_at"),
        )
        .annotate(changed_at=Greatest("updated_at", "feedback__updated_at"))
        .filter(changed_at__gte=since, changed_at__lte=until)
        .select_related("conversation__user", "feedback")
        .order_by("changed_at")
    )
    for answer in answers.iterator(chunk_size=100):
        conversation = answer.conversation
        if prompt := _prompt_since_consent(answer):
            yield Observation(
                id=answer.id,
                learner_id=conversation.user_id,
                task=Task.TUTORING,
                subject=Subject(conversation.subject),
                record=_record(prompt, answer),
                done_at=answer.created_at,
                changed_at=answer.changed_at,
            )


def _prompt_since_consent(answer: Message) -> list[dict[str, str]]:
    """What the answer was given to, without what was said before the learner's consent."""
    conversation = answer.conversation
    before = conversation.messages.filter(
        position__lt=answer.position, created_at__gte=conversation.user.training_consented_at
    )
    turns = list(before.order_by("-position")[: HISTORY + 1])[::-1]
    if turns and turns[0].role == Message.Role.ASSISTANT:
        del turns[0]
    return messages_for_model(conversation, turns) if turns else []


def _record(prompt: list[dict[str, str]], answer: Message) -> dict[str, Any]:
    reply = {"role": "assistant", "content": answer.content}
    if hasattr(answer, "feedback"):
        return {"messages": [*prompt, reply], "liked": answer.feedback.rating == Feedback.Rating.UP}
    context = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in prompt]
    return {"messages": [*context, reply]}
