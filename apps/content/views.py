from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.exceptions import PermissionDenied
from rest_framework.generics import ListAPIView
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from apps.common.pagination import CursorPagination
from apps.common.views import ApiView, HasPermission
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

WRITE_ITEM = "content.add_item or content.change_item"
WRITE_COURSE = "content.add_course or content.change_course"


class ContentView(ApiView):
    """Everybody reads. Who may add something changes what they made; what others made only with the permission."""

    permission_classes = [IsAuthenticated, HasPermission]
    permissions = {"GET": ()}
    request: AuthenticatedRequest

    def changed(self, serializer_class: type[serializers.Serializer[Any]], one: Item | Course) -> dict[str, Any]:
        """The fields that a PATCH has; raises `PermissionDenied` for what is another's."""
        self.check_own(one)
        return self.validated(serializer_class, partial=True)

    def check_own(self, one: Item | Course, action: str = "change") -> None:
        if not selectors.may_change(self.request.user, one, action):
            raise PermissionDenied(f"It is another's: you need the permission content.{action}_{one._meta.model_name}.")


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

    permissions = {"GET": (), "POST": ("content.add_item",)}
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
    permissions = {"GET": (), "PATCH": (WRITE_ITEM,), "DELETE": (WRITE_ITEM,)}

    @extend_schema(responses=ItemSerializer)
    def get(self, request: AuthenticatedRequest, item_id: UUID) -> Response:
        """One item."""
        return Response(ItemSerializer(selectors.item_get_for_user(user=request.user, item_id=item_id)).data)

    @extend_schema(request=ItemWriteSerializer, responses=ItemSerializer)
    def patch(self, request: AuthenticatedRequest, item_id: UUID) -> Response:
        """Change fields of an item. A teacher changes her own."""
        item = selectors.item_get_for_user(user=request.user, item_id=item_id)
        services.item_update(item=item, **self.changed(ItemWriteSerializer, item))
        return Response(ItemSerializer(selectors.item_get_for_user(user=request.user, item_id=item_id)).data)

    @extend_schema(responses={204: None})
    def delete(self, request: AuthenticatedRequest, item_id: UUID) -> Response:
        """Archive an item: nobody is shown it, and what learners did with it stays."""
        item = selectors.item_get_for_user(user=request.user, item_id=item_id)
        self.check_own(item)
        services.item_archive(items=Item.objects.filter(id=item.id))
        return Response(status=status.HTTP_204_NO_CONTENT)


class CourseListCreate(ListAPIView[Course], ContentView):
    """Courses, newest first, without their units."""

    permissions = {"GET": (), "POST": ("content.add_course",)}
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
    permissions = {"GET": (), "PATCH": (WRITE_COURSE,), "DELETE": ("content.add_course or content.delete_course",)}

    @extend_schema(responses=CourseDetailSerializer)
    def get(self, request: AuthenticatedRequest, course_id: UUID) -> Response:
        """One course with its units and their lessons."""
        return Response(_shown(request, course_id))

    @extend_schema(request=CourseWriteSerializer, responses=CourseDetailSerializer)
    def patch(self, request: AuthenticatedRequest, course_id: UUID) -> Response:
        """Change a course; `units`, if given, replace all that it has."""
        course = selectors.course_get_for_user(user=request.user, course_id=course_id)
        services.course_update(course=course, **self.changed(CourseWriteSerializer, course))
        return Response(_shown(request, course_id))

    @extend_schema(responses={204: None})
    def delete(self, request: AuthenticatedRequest, course_id: UUID) -> Response:
        """Delete a course; its items stay."""
        course = selectors.course_get_for_user(user=request.user, course_id=course_id)
        self.check_own(course, "delete")
        course.delete()
        return Response(status=status.HTTP_204_NO_CONTENT)


def _shown(request: AuthenticatedRequest, course_id: UUID) -> dict[str, Any]:
    course = selectors.course_get_for_user(user=request.user, course_id=course_id)
    return dict(CourseDetailSerializer(course).data)
