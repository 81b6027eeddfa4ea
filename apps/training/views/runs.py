"""Fine-tuning jobs as OpenAI's clients know them."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.response import Response

from apps.common.openai import IDEMPOTENCY_KEY, ErrorSerializer
from apps.training.models import Run
from apps.training.selectors import runs as selectors
from apps.training.serializers.runs import (
    RunCheckpointListSerializer,
    RunCreateSerializer,
    RunEventListSerializer,
    RunListQuerySerializer,
    RunListSerializer,
    RunSerializer,
)
from apps.training.services import runs as services
from apps.training.views.data import ERRORS, TrainingOpenAIView
from apps.users.auth import AuthenticatedRequest

FOUND = {404: ErrorSerializer, **ERRORS}


class RunListCreate(TrainingOpenAIView):
    permissions = {"GET": ("training.view_run",), "POST": ("training.train",)}

    @extend_schema(
        operation_id="v1_fine_tuning_jobs_list",
        parameters=[RunListQuerySerializer],
        responses={200: RunListSerializer, 400: ErrorSerializer, **FOUND},
    )
    def get(self, request: AuthenticatedRequest) -> Response:
        """The runs, newest first, without recipes, mixtures and results."""
        runs, more = selectors.run_list(**self.queried(RunListQuerySerializer))
        return Response({"object": "list", "data": [selectors.run_summary(run) for run in runs], "has_more": more})

    @extend_schema(
        request=RunCreateSerializer,
        parameters=[IDEMPOTENCY_KEY],
        responses={200: RunSerializer, **dict.fromkeys((400, 409, 413, 415), ErrorSerializer), **ERRORS},
    )
    def post(self, request: AuthenticatedRequest) -> Response:
        """Train an adapter on uploaded files. It serves, under the name `fine_tuned_model`, as soon as it is there."""
        asked = self.validated(RunCreateSerializer)
        run = services.run_start(user=request.user, idempotency_key=self.idempotency_key(), **asked)
        return Response(selectors.run_data(run))


class RunDetail(TrainingOpenAIView):
    permissions = {"GET": ("training.view_run",)}

    @extend_schema(responses={200: RunSerializer, **FOUND})
    def get(self, request: AuthenticatedRequest, job_id: str) -> Response:
        """One run."""
        return Response(selectors.run_data(selectors.run_get(public_id=job_id)))


class _RunChange(TrainingOpenAIView):
    permissions = {"POST": ("training.train",)}

    @staticmethod
    def change(*, run: Run) -> Run:
        raise NotImplementedError

    @extend_schema(request=None, responses={200: RunSerializer, 409: ErrorSerializer, **FOUND})
    def post(self, request: AuthenticatedRequest, job_id: str) -> Response:
        run = self.change(run=selectors.run_get(public_id=job_id))
        return Response(selectors.run_data(run))


class RunCancel(_RunChange):
    """End a run; what it has learnt is given up, but for checkpoints that serve."""

    change = staticmethod(services.run_cancel)


class RunPause(_RunChange):
    """Stop a run where it is."""

    change = staticmethod(services.run_pause)


class RunResume(_RunChange):
    """Let a paused or failed run go on from its last checkpoint."""

    change = staticmethod(services.run_resume)


class RunEventList(TrainingOpenAIView):
    permissions = {"GET": ("training.view_run",)}

    @extend_schema(
        parameters=[RunListQuerySerializer], responses={200: RunEventListSerializer, 400: ErrorSerializer, **FOUND}
    )
    def get(self, request: AuthenticatedRequest, job_id: str) -> Response:
        """What happened, and the metrics of each step; the latest first."""
        run = selectors.run_get(public_id=job_id)
        events, more = selectors.event_list(run=run, **self.queried(RunListQuerySerializer))
        return Response({"object": "list", "data": [selectors.event_data(event) for event in events], "has_more": more})


class RunCheckpointList(TrainingOpenAIView):
    permissions = {"GET": ("training.view_run",)}

    @extend_schema(
        parameters=[RunListQuerySerializer],
        responses={200: RunCheckpointListSerializer, 400: ErrorSerializer, **FOUND},
    )
    def get(self, request: AuthenticatedRequest, job_id: str) -> Response:
        """States that serve, and from which the run can go on; the latest first."""
        run = selectors.run_get(public_id=job_id)
        found, more = selectors.checkpoint_list(run=run, **self.queried(RunListQuerySerializer))
        data: list[dict[str, Any]] = [selectors.checkpoint_data(checkpoint, run) for checkpoint in found]
        ids = [checkpoint["id"] for checkpoint in data] or [None]
        page = {"object": "list", "data": data, "first_id": ids[0], "last_id": ids[-1], "has_more": more}
        return Response(page)
