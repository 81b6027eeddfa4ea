"""Promotion, which is the gate before a route, and adapters that come from outside."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO
from uuid import uuid4

from django.db import transaction
from rest_framework.exceptions import ValidationError

from apps.common.errors import Conflict, TooManyRequests
from apps.common.parsers import loads
from apps.inference import store
from apps.inference.models import Adapter, Route
from apps.inference.selectors import Believed
from apps.inference.services import route_promote
from apps.jobs.models import Job
from apps.jobs.services import job_admit, job_create
from apps.training.archives import META, BadArchive, unpack
from apps.training.models import Evaluation
from apps.training.selectors.evaluations import evaluation_latest
from apps.users.models import User
from lyo import env

IMPORT_KIND = "import_adapter"


@transaction.atomic
def adapter_promote(
    *,
    adapter: Adapter,
    task: str,
    subject: str = "",
    canary_share: float | None = None,
    user: User | None = None,
    override_reason: str = "",
    believed: Believed | None = None,
) -> Route:
    """Make an adapter live, or with a share the canary, if the gate has let it through.

    Raises `Conflict` as `route_promote` does, and without an `override_reason`, which is recorded, where no evaluation
    of it for the task was asked for (`not_evaluated`) or the last one held it back (`held_back`, with `failures`).
    """
    evaluation = evaluation_latest(adapter=adapter, task=task, subject=subject)
    refusal, failures = _held_back(evaluation)
    if refusal and not override_reason:
        raise refusal
    return route_promote(
        task=task,
        subject=subject,
        adapter=adapter,
        canary_share=canary_share,
        user=user,
        reason=override_reason,
        evaluation_id=evaluation.id if evaluation else None,
        overridden=failures,
        believed=believed,
    )


def _held_back(evaluation: Evaluation | None) -> tuple[Conflict | None, list[str]]:
    """Why the gate does not let an adapter through, if so, and what that says measure by measure."""
    if evaluation is None:
        detail = "It was not evaluated for this: ask for an evaluation first."
        return Conflict(detail, code="not_evaluated"), [detail]
    if not evaluation.passed:
        detail = f"Its evaluation held it back: {' '.join(evaluation.failures)}"
        extra = {"evaluation": str(evaluation.id), "failures": evaluation.failures}
        return Conflict(detail, code="held_back", extra=extra), evaluation.failures
    return None, []


def adapter_upload(
    *, user: User, archive: IO[bytes], suffix: str, task: str, subject: str, licence: str
) -> tuple[Job, list[str]]:
    """Unpack an adapter's archive to the store, and queue its check by a worker that knows the model. Returns the names
    of what in it was no file of an adapter, too.

    Raises `ValidationError` that names the member which is refused, `ParseError` for a meta.json that is not JSON, and
    `TooManyRequests` as `job_admit` does; then nothing is kept.
    """
    with transaction.atomic():  # before anything is unpacked
        job_admit(user=user, kind=IMPORT_KIND)
    with TemporaryDirectory(prefix="lyo-adapter-") as temporary:
        folder = Path(temporary)
        try:
            skipped = unpack(archive, folder, env.MAX_ADAPTER_MB * 2**20)
        except BadArchive as refusal:
            raise ValidationError({"file": [str(refusal)]}, code="bad_archive") from refusal
        if (folder / META).exists():
            loads((folder / META).read_bytes(), META)
        incoming = f"{store.INCOMING}/{uuid4()}"
        store.put(incoming, folder)
    request = {"folder": incoming, "suffix": suffix, "task": task, "subject": subject, "licence": licence}
    try:
        with transaction.atomic():
            job_admit(user=user, kind=IMPORT_KIND)  # others may have come meanwhile
            return job_create(kind=IMPORT_KIND, user=user, request=request), skipped
    except TooManyRequests:
        store.delete(incoming)
        raise


def upload_forget(job: Job) -> dict[str, str]:
    """When the check of an upload has ended: delete what was uploaded."""
    transaction.on_commit(lambda: store.delete(job.request["folder"]))
    return {}
