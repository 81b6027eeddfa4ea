"""Files as OpenAI's clients know them, and what staff do with examples and data set versions."""

import json
from collections.abc import Iterator
from itertools import islice
from uuid import UUID

from django.db.models import QuerySet
from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.generics import ListAPIView
from rest_framework.parsers import MultiPartParser
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from apps.common.errors import RequestTooLarge
from apps.common.openai import COMMON_ERRORS, ErrorSerializer, OpenAIView
from apps.common.serializers import RefusalSerializer
from apps.common.streaming import streamed
from apps.common.views import ApiView, HasPermission
from apps.training.formats import Record
from apps.training.models import DataSetVersion, Example
from apps.training.selectors import data as selectors
from apps.training.serializers.data import (
    DataSetVersionCreateSerializer,
    DataSetVersionSerializer,
    ExampleQuerySerializer,
    ExampleSerializer,
    ExampleSummarySerializer,
    ExportQuerySerializer,
    FileCreateSerializer,
    FileDeletedSerializer,
    FileListQuerySerializer,
    FileListSerializer,
    FileSerializer,
    ReviewCreateSerializer,
)
from apps.training.services import data as services
from apps.users.auth import AuthenticatedRequest
from lyo import env

ERRORS = {**COMMON_ERRORS, 403: ErrorSerializer}
FORM_BYTES = 2**16  # of a multipart body, beside the file
LINES = 100  # that are sent at once


class TrainingView(ApiView):
    permission_classes = [IsAuthenticated, HasPermission]


class TrainingOpenAIView(OpenAIView, TrainingView):
    pass


def require_size(request: Request) -> None:
    """Raise `RequestTooLarge` for a larger file than may be uploaded, before it is read."""
    if int(request.META.get("CONTENT_LENGTH") or 0) > env.MAX_FILE_MB * 2**20 + FORM_BYTES:
        raise RequestTooLarge(f"A file may have {env.MAX_FILE_MB} MB at most.")


# --- /v1/files ---


class FileListCreate(TrainingOpenAIView):
    permissions = {"GET": ("training.view_file",), "POST": ("training.add_file",)}
    parser_classes = [MultiPartParser]

    @extend_schema(
        operation_id="v1_files_list",
        parameters=[FileListQuerySerializer],
        responses={200: FileListSerializer, 400: ErrorSerializer, 404: ErrorSerializer, **ERRORS},
    )
    def get(self, request: AuthenticatedRequest) -> Response:
        """The uploaded files, newest first."""
        query = self.queried(FileListQuerySerializer)
        after = selectors.file_get(public_id=query["after"]) if "after" in query else None
        files, more = selectors.file_list(limit=query["limit"], after=after, newest_first=query["order"] == "desc")
        data = (
            [selectors.file_data(file) for file in files]
            if query.get("purpose", selectors.PURPOSE) == selectors.PURPOSE
            else []
        )
        ids = [file["id"] for file in data] or [None]
        page = {"object": "list", "data": data, "first_id": ids[0], "last_id": ids[-1], "has_more": more}
        return Response(page)

    @extend_schema(
        request={"multipart/form-data": FileCreateSerializer},
        responses={200: FileSerializer, **dict.fromkeys((400, 413, 415), ErrorSerializer), **ERRORS},
    )
    def post(self, request: AuthenticatedRequest) -> Response:
        """Upload a file of examples: lines of JSON, or a sheet (.csv, .xlsx) with the fields as columns.

        A broken line is refused by its number, and then nothing is kept. The same bytes are the same file: what is said
        last of its subject and its task holds.
        """
        require_size(request)
        form = self.validated(FileCreateSerializer)
        upload = form["file"]
        about = {"subject": form["subject"], "task": form["task"]}
        file = services.file_create(user=request.user, filename=upload.name, stream=upload, **about)
        return Response(selectors.file_data(file))


class FileDetail(TrainingOpenAIView):
    permissions = {"GET": ("training.view_file",), "DELETE": ("training.delete_file",)}

    @extend_schema(responses={200: FileSerializer, 404: ErrorSerializer, **ERRORS})
    def get(self, request: AuthenticatedRequest, file_id: str) -> Response:
        """One file."""
        return Response(selectors.file_data(selectors.file_get(public_id=file_id)))

    @extend_schema(responses={200: FileDeletedSerializer, 404: ErrorSerializer, **ERRORS})
    def delete(self, request: AuthenticatedRequest, file_id: str) -> Response:
        """Delete a file with the examples that only it has."""
        services.file_delete(file=selectors.file_get(public_id=file_id))
        return Response({"id": file_id, "object": "file", "deleted": True})


class FileContent(TrainingOpenAIView):
    permissions = {"GET": ("training.view_file", "training.view_example")}

    @extend_schema(
        responses={(200, "application/jsonl"): OpenApiTypes.BINARY, 404: ErrorSerializer, **ERRORS},
    )
    def get(self, request: AuthenticatedRequest, file_id: str) -> StreamingHttpResponse:
        """The bytes that were uploaded."""
        return streamed(selectors.file_chunks(selectors.file_get(public_id=file_id)))


# --- examples and data set versions ---


@extend_schema(parameters=[ExampleQuerySerializer])
class ExampleList(ListAPIView[Example], TrainingView):
    """Examples, newest first, without their content."""

    permissions = {"GET": ("training.view_example",)}
    serializer_class = ExampleSummarySerializer

    def get_queryset(self) -> QuerySet[Example]:
        return selectors.example_list(**self.queried(ExampleQuerySerializer)).defer("content", "original", "bands")


class ExampleDetail(TrainingView):
    permissions = {"GET": ("training.view_example",)}

    @extend_schema(responses={200: ExampleSerializer})
    def get(self, request: AuthenticatedRequest, example_id: UUID) -> Response:
        """One example, with personal data masked."""
        return Response(ExampleSerializer(selectors.example_get(example_id=example_id)).data)


class ExampleReview(TrainingView):
    permissions = {"POST": ("training.change_example",)}

    @extend_schema(request=ReviewCreateSerializer, responses={200: ExampleSerializer, 409: RefusalSerializer})
    def post(self, request: AuthenticatedRequest, example_id: UUID) -> Response:
        """Approve, edit or reject an example; one's later decision replaces the earlier one."""
        example = selectors.example_get(example_id=example_id)
        decided = self.validated(ReviewCreateSerializer)
        example = services.example_review(example=example, reviewer=request.user, **decided)
        return Response(ExampleSerializer(example).data)


class DataSetVersionListCreate(ListAPIView[DataSetVersion], TrainingView):
    """Data set versions, newest first."""

    permissions = {"GET": ("training.view_datasetversion",), "POST": ("training.add_datasetversion",)}
    serializer_class = DataSetVersionSerializer

    def get_queryset(self) -> QuerySet[DataSetVersion]:
        return DataSetVersion.objects.all()

    @extend_schema(
        request=DataSetVersionCreateSerializer,
        responses={201: DataSetVersionSerializer, 200: DataSetVersionSerializer},
    )
    def post(self, request: AuthenticatedRequest) -> Response:
        """Fix the approved examples as a version: 201, or 200 with the last one if the data are as they were."""
        version, is_new = services.version_build(user=request.user, **self.validated(DataSetVersionCreateSerializer))
        body = DataSetVersionSerializer(version).data
        return Response(body, status=status.HTTP_201_CREATED if is_new else status.HTTP_200_OK)


class DataSetVersionDetail(TrainingView):
    permissions = {"GET": ("training.view_datasetversion",)}

    @extend_schema(responses={200: DataSetVersionSerializer})
    def get(self, request: AuthenticatedRequest, version_id: UUID) -> Response:
        """One data set version, with its statistics."""
        return Response(DataSetVersionSerializer(selectors.version_get(version_id=version_id)).data)


class DataSetVersionRecords(TrainingView):
    permissions = {"GET": ("training.view_datasetversion", "training.view_example")}

    @extend_schema(
        parameters=[ExportQuerySerializer],
        responses={(200, "application/jsonl"): OpenApiTypes.BINARY, 400: RefusalSerializer, 409: RefusalSerializer},
    )
    def get(self, request: AuthenticatedRequest, version_id: UUID) -> StreamingHttpResponse:
        """The records that a trainer takes, as JSONL."""
        version = selectors.version_get(version_id=version_id)
        records = selectors.version_records(version=version, **self.queried(ExportQuerySerializer))
        return streamed(_jsonl(records))


def _jsonl(records: Iterator[Record]) -> Iterator[bytes]:
    while page := list(islice(records, LINES)):
        yield "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in page).encode()
