"""What staff do with evaluation sets and evaluations."""

from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.generics import ListAPIView
from rest_framework.parsers import MultiPartParser
from rest_framework.response import Response

from apps.common.serializers import RefusalSerializer
from apps.inference.selectors import adapter_get
from apps.jobs.selectors import job_accepted
from apps.training.models import Evaluation, EvaluationSet
from apps.training.selectors import evaluations as selectors
from apps.training.serializers.evaluations import (
    EvaluationAcceptedSerializer,
    EvaluationCreateSerializer,
    EvaluationQuerySerializer,
    EvaluationSerializer,
    EvaluationSetCreateSerializer,
    EvaluationSetSerializer,
    EvaluationSummarySerializer,
)
from apps.training.services import evaluations as services
from apps.training.services.data import evaluation_set_register
from apps.training.views.data import TrainingView, require_size
from apps.users.auth import AuthenticatedRequest


class AdapterEvaluate(TrainingView):
    permissions = {"POST": ("training.add_evaluation",)}

    @extend_schema(request=EvaluationCreateSerializer, responses={202: EvaluationAcceptedSerializer})
    def post(self, request: AuthenticatedRequest, adapter_id: UUID) -> Response:
        """Compare an adapter with the live one and the base model, for a task: 202 with the job."""
        adapter = adapter_get(adapter_id=adapter_id)
        evaluation, job = services.evaluation_create(
            user=request.user, adapter=adapter, **self.validated(EvaluationCreateSerializer)
        )
        body = {
            **job_accepted(user=request.user, job_id=job.id),
            "evaluation": EvaluationSerializer(evaluation).data,
        }
        return Response(body, status=status.HTTP_202_ACCEPTED)


@extend_schema(parameters=[EvaluationQuerySerializer])
class EvaluationList(ListAPIView[Evaluation], TrainingView):
    """Evaluations, newest first, without their reports."""

    permissions = {"GET": ("training.view_evaluation",)}
    serializer_class = EvaluationSummarySerializer

    def get_queryset(self) -> QuerySet[Evaluation]:
        return selectors.evaluation_list(**self.queried(EvaluationQuerySerializer)).defer("report")


class EvaluationDetail(TrainingView):
    permissions = {"GET": ("training.view_evaluation",)}

    @extend_schema(responses={200: EvaluationSerializer})
    def get(self, request: AuthenticatedRequest, evaluation_id: UUID) -> Response:
        """One evaluation: how far it is, its report and the gate's verdict."""
        return Response(EvaluationSerializer(selectors.evaluation_get(evaluation_id=evaluation_id)).data)


class EvaluationSetListCreate(ListAPIView[EvaluationSet], TrainingView):
    """Evaluation sets, newest first."""

    permissions = {"GET": ("training.view_evaluationset",), "POST": ("training.add_evaluationset",)}
    serializer_class = EvaluationSetSerializer
    parser_classes = [MultiPartParser]

    def get_queryset(self) -> QuerySet[EvaluationSet]:
        return selectors.evaluation_set_list()

    @extend_schema(
        request={"multipart/form-data": EvaluationSetCreateSerializer},
        responses={200: EvaluationSetSerializer, 413: RefusalSerializer},
    )
    def post(self, request: AuthenticatedRequest) -> Response:
        """Register a file, lines of JSON or a sheet, as the next version of a set.

        The same problems give the version that is there.
        """
        require_size(request)
        form = self.validated(EvaluationSetCreateSerializer)
        upload = form["file"]
        made = evaluation_set_register(name=form["name"], task=form["task"], stream=upload, filename=upload.name)
        return Response(EvaluationSetSerializer(selectors.evaluation_set_list().get(id=made.id)).data)
