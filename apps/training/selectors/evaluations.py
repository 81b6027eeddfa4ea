from apps.inference.models import Adapter
from apps.training.models import Evaluation


def evaluation_latest(*, adapter: Adapter, task: str, subject: str = "") -> Evaluation | None:
    """The last evaluation of the adapter for a task that has ended with a verdict."""
    ended = Evaluation.objects.filter(adapter=adapter, task=task, subject=subject, passed__isnull=False)
    return ended.order_by("-created_at").first()
