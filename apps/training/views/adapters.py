"""The registry of adapters and the routes on which they serve."""

from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.generics import ListAPIView
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response

from apps.common.errors import RequestTooLarge
from apps.common.pagination import CursorPagination
from apps.common.serializers import RefusalSerializer
from apps.common.streaming import streamed
from apps.inference.models import Adapter, Route, RouteChange
from apps.inference.selectors import route_change_list, route_get, route_list
from apps.inference.services import route_complete, route_rollback
from apps.jobs.selectors import job_accepted
from apps.training.selectors import adapters as selectors
from apps.training.serializers.adapters import (
    AdapterPromoteSerializer,
    AdapterQuerySerializer,
    AdapterSerializer,
    AdapterSummarySerializer,
    AdapterUploadSerializer,
    JobAcceptedSerializer,
    RouteChangeCreateSerializer,
    RouteChangeSerializer,
    RouteQuerySerializer,
    RouteSerializer,
)
from apps.training.services import adapters as services
from apps.training.views.data import FORM_BYTES, TrainingView
from apps.users.auth import AuthenticatedRequest
from lyo import env

CONFLICT = {409: RefusalSerializer}


class AdapterListCreate(ListAPIView[Adapter], TrainingView):
    """Adapters, newest first, without licences and the reports of their evaluations."""

    permissions = {"GET": ("inference.view_adapter",), "POST": ("inference.add_adapter",)}
    request: AuthenticatedRequest
    serializer_class = AdapterSummarySerializer
    parser_classes = [MultiPartParser]

    def get_queryset(self) -> QuerySet[Adapter]:
        return selectors.adapter_list(**self.queried(AdapterQuerySerializer)).defer("licence")

    @extend_schema(parameters=[AdapterQuerySerializer])
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return super().get(request, *args, **kwargs)

    @extend_schema(request={"multipart/form-data": AdapterUploadSerializer}, responses={202: JobAcceptedSerializer})
    def post(self, request: AuthenticatedRequest) -> Response:
        """Import a PEFT folder from outside. A worker checks it against the model; the job's result names the adapter.

        Only safetensors are taken, and nothing but an adapter's own files: `skipped` names what else was there. The
        same weights are the same adapter.
        """
        if int(request.META.get("CONTENT_LENGTH") or 0) > env.MAX_ADAPTER_MB * 2**20 + FORM_BYTES:
            raise RequestTooLarge(f"An adapter may have {env.MAX_ADAPTER_MB} MB at most.")
        form = self.validated(AdapterUploadSerializer)
        job, skipped = services.adapter_upload(user=request.user, archive=form.pop("file"), **form)
        body = {**job_accepted(user=request.user, job_id=job.id), "skipped": skipped}
        return Response(body, status=status.HTTP_202_ACCEPTED)


class AdapterDetail(TrainingView):
    permissions = {"GET": ("inference.view_adapter",)}

    @extend_schema(responses={200: AdapterSerializer})
    def get(self, request: AuthenticatedRequest, adapter_id: UUID) -> Response:
        """One adapter, with the metrics of its training and of its evaluations."""
        return Response(AdapterSerializer(selectors.adapter_get(adapter_id=adapter_id)).data)


class AdapterDownload(TrainingView):
    permissions = {"GET": ("inference.view_adapter",)}

    @extend_schema(responses={(200, "application/zip"): OpenApiTypes.BINARY, 404: RefusalSerializer})
    def get(self, request: AuthenticatedRequest, adapter_id: UUID) -> StreamingHttpResponse:
        """The adapter's folder as a .zip: weights, settings, meta.json and a model card."""
        adapter = selectors.adapter_get(adapter_id=adapter_id)
        response = streamed(selectors.adapter_archive(adapter), "application/zip")
        response["Content-Disposition"] = f'attachment; filename="{adapter.digest}.zip"'
        return response


class AdapterPromote(TrainingView):
    permissions = {"POST": ("inference.change_route",)}

    @extend_schema(request=AdapterPromoteSerializer, responses={200: RouteSerializer, **CONFLICT})
    def post(self, request: AuthenticatedRequest, adapter_id: UUID) -> Response:
        """Put an adapter on a route: live, or as the canary of a share of the users.

        409 where it was not evaluated for the task, or the evaluation's gate held it back (`failures` says why): only
        with an `override_reason`, which is recorded, is it done all the same.
        """
        adapter = selectors.adapter_get(adapter_id=adapter_id)
        asked = self.validated(AdapterPromoteSerializer)
        return Response(RouteSerializer(services.adapter_promote(adapter=adapter, user=request.user, **asked)).data)


class RoutePagination(CursorPagination):
    ordering = ("task", "subject")


class RouteList(ListAPIView[Route], TrainingView):
    """All routes, with the state of each canary's test. A task without one is the base model's."""

    permissions = {"GET": ("inference.view_route",)}
    serializer_class = RouteSerializer
    pagination_class = RoutePagination

    def get_queryset(self) -> QuerySet[Route]:
        return route_list()


class RouteDetail(TrainingView):
    permissions = {"GET": ("inference.view_route",)}

    @extend_schema(parameters=[RouteQuerySerializer], responses={200: RouteSerializer})
    def get(self, request: AuthenticatedRequest, task: str) -> Response:
        """A task's route, or that of one of its subjects."""
        return Response(RouteSerializer(route_get(task=task, **self.queried(RouteQuerySerializer))).data)


class ChangePagination(CursorPagination):
    ordering = "-id"


@extend_schema(parameters=[RouteQuerySerializer])
class RouteChangeList(ListAPIView[RouteChange], TrainingView):
    """What was done to a route, by whom and why, newest first."""

    permissions = {"GET": ("inference.view_routechange",)}
    serializer_class = RouteChangeSerializer
    pagination_class = ChangePagination

    def get_queryset(self) -> QuerySet[RouteChange]:
        route = route_get(task=self.kwargs["task"], **self.queried(RouteQuerySerializer))
        return route_change_list(route=route)


class RouteRollback(TrainingView):
    permissions = {"POST": ("inference.change_route",)}

    @extend_schema(request=RouteChangeCreateSerializer, responses={200: RouteSerializer, **CONFLICT})
    def post(self, request: AuthenticatedRequest, task: str) -> Response:
        """End the canary, or without one go back to what was live before: 409 where nothing was."""
        asked = self.validated(RouteChangeCreateSerializer)
        return Response(RouteSerializer(route_rollback(task=task, user=request.user, **asked)).data)


class RouteComplete(TrainingView):
    permissions = {"POST": ("inference.change_route",)}

    @extend_schema(request=RouteChangeCreateSerializer, responses={200: RouteSerializer, **CONFLICT})
    def post(self, request: AuthenticatedRequest, task: str) -> Response:
        """Make the canary live."""
        asked = self.validated(RouteChangeCreateSerializer)
        return Response(RouteSerializer(route_complete(task=task, user=request.user, **asked)).data)
