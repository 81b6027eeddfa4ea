from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.exceptions import PermissionDenied
from rest_framework.generics import ListAPIView
from rest_framework.permissions import SAFE_METHODS, BasePermission, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from apps.common.pagination import CursorPagination
from apps.common.views import ApiView
from apps.content import selectors, services
from apps.content.models import Course, Item, Topic
from apps.content.serializers import (
    CourseDetailSerializer,
    CourseQuerySerializer,
    CourseSerializer,
    CourseWriteSerializer,
    ItemQuerySerializer,
    ItemSerializer,
    ItemSummarySerializer,
    ItemWriteSerializer,
    TopicQuerySerializer,
    TopicSerializer,
)
from apps.users.auth import AuthenticatedRequest


class WritesContent(BasePermission):
    """Everybody reads; teachers, staff and those with the permission write."""

    message = "Content is written by teachers and staff."

    def has_permission(self, request: Request, view: Any) -> bool:
        return request.method in SAFE_METHODS or selectors.may_write(request.user)  # type: ignore[arg-type]


class ContentView(ApiView):
    permission_classes = [IsAuthenticated, WritesContent]
    request: AuthenticatedRequest

    def changed(self, serializer_class: type[serializers.Serializer[Any]], made_by: UUID | None) -> dict[str, Any]:
        """The fields that a PATCH has; raises `PermissionDenied` for what is another teacher's."""
        self.check_own(made_by)
        return self.validated(serializer_class, partial=True)

    def check_own(self, made_by: UUID | None) -> None:
        if not selectors.may_change(self.request.user, made_by):
            raise PermissionDenied("It is another's.")


class TopicPagination(CursorPagination):
    ordering = ("subject", "position", "slug")


class TopicList(ListAPIView[Topic], ContentView):
    """Topics in the order of teaching, each with its parent and its prerequisites."""

    serializer_class = TopicSerializer
    pagination_class = TopicPagination

    def get_queryset(self) -> QuerySet[Topic]:
        return selectors.topic_list(**self.queried(TopicQuerySerializer))

    @extend_schema(parameters=[TopicQuerySerializer])
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return super().get(request, *args, **kwargs)


class TopicDetail(ContentView):
    @extend_schema(responses=TopicSerializer)
    def get(self, request: AuthenticatedRequest, slug: str) -> Response:
        """One topic."""
        return Response(TopicSerializer(selectors.topic_get(slug=slug)).data)


class ItemListCreate(ListAPIView[Item], ContentView):
    """Items, newest first, without their bodies."""

    serializer_class = ItemSummarySerializer

    def get_queryset(self) -> QuerySet[Item]:
        items = selectors.item_list_for_user(user=self.request.user, **self.queried(ItemQuerySerializer))
        return items.defer("body", "text", "words")

    @extend_schema(parameters=[ItemQuerySerializer])
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return super().get(request, *args, **kwargs)

    @extend_schema(request=ItemWriteSerializer, responses={201: ItemSerializer})
    def post(self, request: AuthenticatedRequest) -> Response:
        """Make an item. Workers estimate its level, quality and educational value; until then these are null."""
        item = services.item_create(user=request.user, **self.validated(ItemWriteSerializer))
        return Response(ItemSerializer(item).data, status=status.HTTP_201_CREATED)


class ItemDetail(ContentView):
    @extend_schema(responses=ItemSerializer)
    def get(self, request: AuthenticatedRequest, item_id: UUID) -> Response:
        """One item."""
        return Response(ItemSerializer(selectors.item_get_for_user(user=request.user, item_id=item_id)).data)

    @extend_schema(request=ItemWriteSerializer, responses=ItemSerializer)
    def patch(self, request: AuthenticatedRequest, item_id: UUID) -> Response:
        """Change fields of an item. A teacher changes her own."""
        item = selectors.item_get_for_user(user=request.user, item_id=item_id)
        services.item_update(item=item, **self.changed(ItemWriteSerializer, item.user_id))
        return Response(ItemSerializer(selectors.item_get_for_user(user=request.user, item_id=item_id)).data)

    @extend_schema(responses={204: None})
    def delete(self, request: AuthenticatedRequest, item_id: UUID) -> Response:
        """Archive an item: nobody is shown it, and what learners did with it stays."""
        item = selectors.item_get_for_user(user=request.user, item_id=item_id)
        self.check_own(item.user_id)
        services.item_archive(items=Item.objects.filter(id=item.id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class CourseListCreate(ListAPIView[Course], ContentView):
    """Courses, newest first, without their units."""

    serializer_class = CourseSerializer

    def get_queryset(self) -> QuerySet[Course]:
        return selectors.course_list_for_user(user=self.request.user, **self.queried(CourseQuerySerializer))

    @extend_schema(parameters=[CourseQuerySerializer])
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return super().get(request, *args, **kwargs)

    @extend_schema(request=CourseWriteSerializer, responses={201: CourseDetailSerializer})
    def post(self, request: AuthenticatedRequest) -> Response:
        """Make a course of units of lessons, which are items that exist."""
        course = services.course_create(user=request.user, **self.validated(CourseWriteSerializer))
        return Response(_shown(request, course.id), status=status.HTTP_201_CREATED)


class CourseDetail(ContentView):
    @extend_schema(responses=CourseDetailSerializer)
    def get(self, request: AuthenticatedRequest, course_id: UUID) -> Response:
        """One course with its units and their lessons."""
        return Response(_shown(request, course_id))

    @extend_schema(request=CourseWriteSerializer, responses=CourseDetailSerializer)
    def patch(self, request: AuthenticatedRequest, course_id: UUID) -> Response:
        """Change a course; `units`, if given, replace all that it has."""
        course = selectors.course_get_for_user(user=request.user, course_id=course_id)
        services.course_update(course=course, **self.changed(CourseWriteSerializer, course.user_id))
        return Response(_shown(request, course_id))

    @extend_schema(responses={204: None})
    def delete(self, request: AuthenticatedRequest, course_id: UUID) -> Response:
        """Delete a course; its items stay."""
        course = selectors.course_get_for_user(user=request.user, course_id=course_id)
        self.check_own(course.user_id)
        course.delete()
        return Response(status=status.HTTP_204_NO_CONTENT)


def _shown(request: AuthenticatedRequest, course_id: UUID) -> dict[str, Any]:
    course = selectors.course_get_for_user(user=request.user, course_id=course_id)
    return dict(CourseDetailSerializer(course).data)
