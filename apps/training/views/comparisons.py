"""Comparisons with outside models. People judge them in the admin."""

from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.generics import ListAPIView
from rest_framework.response import Response

from apps.common.serializers import RefusalSerializer
from apps.jobs.selectors import job_accepted
from apps.training.models import Comparison
from apps.training.selectors import comparisons as selectors
from apps.training.serializers.comparisons import (
    ComparisonAcceptedSerializer,
    ComparisonCreateSerializer,
    ComparisonDetailSerializer,
    ComparisonSerializer,
)
from apps.training.services import comparisons as services
from apps.training.views.data import TrainingView
from apps.users.auth import AuthenticatedRequest


class ComparisonListCreate(ListAPIView[Comparison], TrainingView):
    """Comparisons with outside models, newest first."""

    permissions = {"GET": ("training.view_comparison",), "POST": ("training.add_comparison",)}
    serializer_class = ComparisonSerializer

    def get_queryset(self) -> QuerySet[Comparison]:
        return selectors.comparison_list()

    @extend_schema(
        request=ComparisonCreateSerializer, responses={202: ComparisonAcceptedSerializer, 409: RefusalSerializer}
    )
    def post(self, request: AuthenticatedRequest) -> Response:
        """Compare an adapter, or the base model, with the outside model that is configured: 202 with the job.

        409 names the settings that are missing. The prompts are sent to the servers of both outside models.
        """
        made, job = services.comparison_create(user=request.user, **self.validated(ComparisonCreateSerializer))
        comparison = selectors.comparison_get(comparison_id=made.id)
        body = {
            **job_accepted(user=request.user, job_id=job.id),
            "comparison": ComparisonSerializer(comparison).data,
        }
        return Response(body, status=status.HTTP_202_ACCEPTED)


class ComparisonDetail(TrainingView):
    permissions = {"GET": ("training.view_comparison",)}

    @extend_schema(responses={200: ComparisonDetailSerializer})
    def get(self, request: AuthenticatedRequest, comparison_id: UUID) -> Response:
        """One comparison with its win rates: by the judging model, and by people."""
        comparison = selectors.comparison_get(comparison_id=comparison_id)
        return Response(ComparisonDetailSerializer(comparison).data)
