from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from rest_framework.exceptions import NotFound

from apps.tutor.models import Conversation, Message
from apps.users.models import User


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


def conversation_export(user: User) -> list[dict[str, Any]]:
    conversations = Conversation.objects.filter(user=user).prefetch_related("messages__feedback")
    return [
        {
            "id": conversation.id,
            "subject": conversation.subject,
            "level": conversation.level,
            "created_at": conversation.created_at,
            "messages": [message_data(message) for message in conversation.messages.all()],
        }
        for conversation in conversations
    ]
