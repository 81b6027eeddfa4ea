from dataclasses import dataclass
from datetime import timedelta
from secrets import randbelow
from typing import Any

from django.db import transaction
from rest_framework.exceptions import ErrorDetail, NotFound, ValidationError

from apps.common import examples
from apps.common.constants import Task
from apps.common.errors import Conflict
from apps.common.tokens import TOO_LONG, require_room
from apps.inference.selectors import routed
from apps.inference.services import outcome_rate
from apps.jobs.models import ACTIVE, Job, State
from apps.jobs.services import job_admit, job_create, job_find_repeat, jobs_erase
from apps.tutor.models import Conversation, Feedback, Message
from apps.tutor.prompts import HISTORY, messages_for_model
from apps.tutor.selectors import SOURCE, message_data
from apps.users.models import User
from lyo import env

JOB_KIND = "chat"
TITLE_LENGTH = 80


@dataclass(frozen=True)
class Turn:
    """The learner's question and the answer that is being made."""

    answer: Message
    job: Job


def conversation_create(*, user: User, subject: str, level: str | None) -> Conversation:
    """Open a conversation; the level is the user's own where none is given."""
    return Conversation.objects.create(user=user, subject=subject, level=level or user.level)


@transaction.atomic
def conversation_delete(*, conversation: Conversation) -> None:
    """Delete a conversation with its messages, the jobs that answered and the examples made of them; a running answer
    is cancelled."""
    Conversation.objects.select_for_update().filter(id=conversation.id).first()  # nobody asks meanwhile
    examples.deleted(SOURCE, list(conversation.messages.values_list("id", flat=True)))
    jobs = conversation.messages.filter(job__isnull=False).values_list("job", flat=True)
    jobs_erase(jobs=Job.objects.filter(id__in=list(jobs)))
    conversation.delete()


@transaction.atomic
def message_ask(
    *,
    conversation: Conversation,
    content: str,
    max_tokens: int,
    temperature: float,
    seed: int | None = None,
    keep: bool,
    idempotency_key: str | None = None,
) -> Turn:
    """Store the learner's question and queue the answer.

    With `keep` false the answer is given up when nobody reads it. Raises `Conflict` while another answer of the
    conversation is under way, `TooManyRequests` past the user's share or the queue's room, and `ValidationError` for
    a question that can never fit beside its answer; of the turns before it the worker leaves out what does not.
    """
    user = conversation.user
    question = Message(conversation=conversation, role=Message.Role.USER, content=content)
    require_room(messages_for_model(conversation, [question]), field="content", answer=max_tokens)
    sampling = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    request = {"conversation": str(conversation.id), "content": content, **sampling}
    if job := job_find_repeat(user=user, idempotency_key=idempotency_key, request=request):
        if answer := Message.objects.filter(job=job).first():
            return Turn(answer, job)
        raise ValidationError({"content": [ErrorDetail((job.error or {}).get("detail", ""), code=TOO_LONG)]})
    job_admit(user=user, kind=JOB_KIND)
    if not Conversation.objects.select_for_update().filter(id=conversation.id).exists():
        raise NotFound  # deleted since it was looked up
    history = list(conversation.messages.order_by("-position")[:HISTORY])[::-1]
    if history and (running := Job.objects.filter(message=history[-1], state__in=ACTIVE).first()):
        raise Conflict(
            "An answer is under way in this conversation.", code="answer_running", extra={"job": str(running.id)}
        )
    position = history[-1].position + 1 if history else 0
    question.position = position
    job = job_create(
        kind=JOB_KIND,
        user=user,
        keep=keep,
        deadline=timedelta(seconds=env.JOB_DEADLINE_S),
        idempotency_key=idempotency_key,
        fingerprint_of=request,
        request={
            "messages": messages_for_model(conversation, [*history, question]),
            "overflow": "drop_oldest",
            "sampling": {**sampling, "seed": randbelow(2**31) if seed is None else seed},
            **routed(task=Task.TUTORING, subject=conversation.subject, user=user),
        },
    )
    answer = Message(conversation=conversation, position=position + 1, role=Message.Role.ASSISTANT, job=job)
    Message.objects.bulk_create([question, answer])
    if not conversation.title:
        Conversation.objects.filter(id=conversation.id).update(title=content.strip()[:TITLE_LENGTH])
    return Turn(answer, job)


def message_record(job: Job) -> dict[str, Any]:
    """When an answer's job ends, in the same transaction: fill the message; it becomes part of the job's result.

    A question that the worker found too long leaves nothing in the conversation, as one that is refused at once.
    """
    message = Message.objects.filter(job=job).select_related("feedback").first()
    if message is None:
        return {}
    if job.state == State.FAILED and (job.error or {}).get("code") == TOO_LONG:
        _take_back(message)
        return {}
    result = job.result or {}
    message.content = result.get("text", "")
    message.finish_reason = "failed" if job.state in (State.FAILED, State.ERRORED) else result.get("finish_reason", "")
    message.model = result.get("model", "")
    message.adapter = result.get("adapter")
    message.save(update_fields=["content", "finish_reason", "model", "adapter", "updated_at"])
    return {"message": message_data(message)}


def _take_back(answer: Message) -> None:
    """Delete an answer that never was, and its question."""
    conversation = Conversation.objects.filter(id=answer.conversation_id)
    turns = Message.objects.filter(conversation=answer.conversation_id)
    turns.filter(position__in=[answer.position - 1, answer.position]).delete()
    if not turns.exists():
        conversation.update(title="")


@transaction.atomic
def feedback_give(*, message: Message, rating: str, reason: str = "") -> Feedback:
    """Rate an answer; a second rating replaces the first. Raises `Conflict` for a question or an unfinished answer."""
    if message.role != Message.Role.ASSISTANT or not message.finish_reason:
        raise Conflict("Only a finished answer can be rated.", code="not_an_answer")
    feedback, _ = Feedback.objects.update_or_create(message=message, defaults={"rating": rating, "reason": reason})
    if message.job_id:
        outcome_rate(job_id=message.job_id, thumb_up=rating == Feedback.Rating.UP)
    return feedback


@transaction.atomic
def feedback_withdraw(*, message: Message) -> None:
    Feedback.objects.filter(message=message).delete()
    if message.job_id:
        outcome_rate(job_id=message.job_id, thumb_up=None)
    message.save(update_fields=["updated_at"])  # so that it is observed again, as an answer without a rating


def conversation_erase(user: User) -> None:
    Conversation.objects.filter(user=user).delete()
