"""What follows where a learner's examples were erased: adapters that learnt from them are named, and learn anew."""

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from apps.inference.models import Adapter
from apps.training.models import Run, RunEvent, RunState
from apps.training.selectors.data import version_list_erased
from apps.training.services.data import version_renew
from apps.training.services.runs import run_cancel, run_create


def runs_renew() -> list[Run]:
    """Mark the adapters of versions that were erased, end the runs on them, and queue each run's successor.

    A run has one successor, on the version made of what is there now: none where nothing is left to learn from.
    """
    digests = version_list_erased().values("digest")
    Adapter.objects.filter(dataset_version__in=digests, erased_at=None).update(erased_at=timezone.now())
    return [successor for run in _to_renew() if (successor := _renew(run))]


def _to_renew() -> QuerySet[Run]:
    """The last run of each adapter's name, and all that are under way."""
    erased = Run.objects.filter(version__erased_at__isnull=False, replaced_by=None)
    return erased.filter(state__in=(*Run.ACTIVE, RunState.PAUSED, RunState.SUCCEEDED))


@transaction.atomic
def _renew(run: Run) -> Run | None:
    run = Run.objects.select_for_update(of=("self",)).select_related("version").get(id=run.id)
    if run.replaced_by.exists():
        return None  # by another beat
    if run.state != RunState.SUCCEEDED:
        run_cancel(run=run)
    try:
        version, _ = version_renew(version=run.version)
    except ValidationError as error:
        RunEvent.objects.get_or_create(run=run, step=None, message=f"Not repeated: {error.messages[0]}")
        return None
    same = {name: getattr(run, name) for name in ("recipe", "weights", "suffix", "task", "subject", "metadata", "user")}
    return run_create(version=version, replaces=run, **same)
