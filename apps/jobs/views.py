import re
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.exceptions import ValidationError
from rest_framework.generics import ListAPIView
from rest_framework.response import Response

from apps.common.views import ApiView
from apps.jobs import selectors, services, streams
from apps.jobs.models import Job
from apps.jobs.serializers import JobSerializer, ListedJobSerializer
from apps.users.auth import AuthenticatedRequest

OFFSET = re.compile("[0-9]{1,10}")


class JobList(ListAPIView[Job]):
    """The caller's jobs, newest first, without their results."""

    request: AuthenticatedRequest
    serializer_class = ListedJobSerializer

    def get_queryset(self) -> QuerySet[Job]:
        return selectors.job_list_for_user(user=self.request.user).defer("request", "result")


class JobDetail(ApiView):
    @extend_schema(responses=JobSerializer)
    def get(self, request: AuthenticatedRequest, job_id: UUID) -> Response:
        """One job: its state, its place in the queue, and what came of it."""
        return Response(JobSerializer(selectors.job_told(user=request.user, job_id=job_id)).data)


class JobCancel(ApiView):
    @extend_schema(request=None, responses=JobSerializer)
    def post(self, request: AuthenticatedRequest, job_id: UUID) -> Response:
        """Cancel a job that has not ended; an ended one stays as it is."""
        services.job_cancel(job=selectors.job_told(user=request.user, job_id=job_id))
        return Response(JobSerializer(selectors.job_told(user=request.user, job_id=job_id)).data)


class JobEvents(ApiView):
    http_method_names = ["get", "options"]  # a HEAD would wait for the job's end

    @extend_schema(
        parameters=[
            OpenApiParameter(
                "Last-Event-ID", {"type": "integer", "minimum": 0}, "header", description="Resume after this event."
            )
        ],
        responses={(200, "text/event-stream"): OpenApiTypes.STR},
    )
    def get(self, request: AuthenticatedRequest, job_id: UUID, **kwargs: Any) -> StreamingHttpResponse:
        """Follow a job: `token` events with `{"text"}`, then exactly one of `done`, `error` and `cancelled`."""
        job = selectors.job_get_for_user(user=request.user, job_id=job_id)
        last = request.headers.get("Last-Event-ID", "0")
        if not OFFSET.fullmatch(last):
            raise ValidationError({"Last-Event-ID": ["Must be the id of an event of this stream."]})
        with streams.reserve(request.user) as place:
            return streams.response(job, place, after=int(last))
