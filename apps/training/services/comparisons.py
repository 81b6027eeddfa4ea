"""How replies come to be compared with those of an outside model, and are judged."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from apps.common.errors import Conflict
from apps.inference.models import Adapter
from apps.jobs.models import Job
from apps.jobs.services import job_admit, job_create
from apps.training.formats import evaluation_form
from apps.training.models import Comparison, EvaluationSet, Example, Pairing, State, Vote
from apps.training.selectors.comparisons import settings_missing
from apps.users.models import User
from lyo import env

JOB_KIND = "compare"
CONTESTANT = ("COMPARE_URL", "COMPARE_MODEL")
JUDGE = ("JUDGE_URL", "JUDGE_MODEL")


@transaction.atomic
def comparison_create(
    *,
    user: User,
    task: str,
    judge: str,
    count: int,
    adapter: Adapter | None = None,
    evaluation_set: EvaluationSet | None = None,
) -> tuple[Comparison, Job]:
    """Queue the comparison of an adapter, or the base model, with the outside model.

    Raises `Conflict` where a setting is missing, which it names, `ValidationError` where there is no prompt, and
    `TooManyRequests` as `job_admit` does.
    """
    by_model = judge == Comparison.Judge.MODEL
    if missing := settings_missing(*CONTESTANT, *(JUDGE if by_model else ())):
        raise Conflict(
            f"No outside model is configured: set {' and '.join(missing)}.",
            code="endpoint_missing",
            extra={"settings": missing},
        )
    job_admit(user=user, kind=JOB_KIND)
    comparison = Comparison(
        task=task,
        adapter=adapter,
        opponent=env.COMPARE_MODEL,
        judge=judge,
        judge_model=env.JUDGE_MODEL if by_model else "",
        evaluation_set=evaluation_set,
        user=user,
    )
    prompts = list(islice(_of_set(evaluation_set) if evaluation_set else _recent(task), count))
    if not prompts:
        raise ValidationError("There is no prompt to compare replies to.", code="no_prompts")
    comparison.job = job = job_create(kind=JOB_KIND, user=user, request={"comparison": str(comparison.id)})
    comparison.save()
    Pairing.objects.bulk_create(
        Pairing(comparison=comparison, position=position, messages=messages, example=example)
        for position, (messages, example) in enumerate(prompts)
    )
    return comparison, job


Prompt = tuple[list[dict[str, Any]], Example | None]


def _of_set(evaluation_set: EvaluationSet) -> Iterator[Prompt]:
    for item in evaluation_set.items.order_by("position").iterator():
        yield from _prompt(item.format, item.content, None)


def _recent(task: str) -> Iterator[Prompt]:
    """Of learners who consented to training, with personal data masked, and approved by a reviewer."""
    consented = Example.objects.filter(task=task, state=State.APPROVED, learner__isnull=False)
    for example in consented.order_by("-created_at", "-id").iterator():
        yield from _prompt(example.format, example.content, example)


def _prompt(format_: str, content: dict[str, Any], example: Example | None) -> Iterable[Prompt]:
    if form := evaluation_form(format_, content):
        messages = [{"role": message["role"], "content": message["content"]} for message in form["messages"][:-1]]
        yield messages, example


def pairing_record(*, pairing_id: int, ours: str, theirs: str, verdict: str = "") -> None:
    answers = {"ours": ours, "theirs": theirs, "verdict": verdict}
    Pairing.objects.filter(id=pairing_id).update(**answers, answered_at=timezone.now())


def vote_give(*, comparison: Comparison, pairing_id: int, user: User, verdict: str) -> Vote:
    """Say which reply of a pairing is better; a later vote replaces the earlier one."""
    pairing = comparison.pairings.filter(id=pairing_id, answered_at__isnull=False).first()
    if pairing is None:
        raise Conflict("There are no such replies to judge.", code="not_answered")
    return Vote.objects.update_or_create(pairing=pairing, user=user, defaults={"verdict": verdict})[0]
