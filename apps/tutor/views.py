from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import status
from rest_framework.generics import ListAPIView
from rest_framework.response import Response

from apps.common.pagination import CursorPagination
from apps.common.serializers import RefusalSerializer
from apps.common.throttles import GenerationThrottle, RequestThrottle
from apps.common.views import ApiView
from apps.jobs import streams
from apps.jobs.selectors import job_accepted
from apps.tutor import selectors, services
from apps.tutor.models import Conversation, Message
from apps.tutor.serializers import (
    ConversationCreateSerializer,
    ConversationSerializer,
    FeedbackSerializer,
    MessageAskSerializer,
    MessageSerializer,
    TurnSerializer,
)
from apps.users.auth import AuthenticatedRequest


class ConversationListCreate(ListAPIView[Conversation], ApiView):
    """The caller's conversations, newest first."""

    request: AuthenticatedRequest
    serializer_class = ConversationSerializer

    def get_queryset(self) -> QuerySet[Conversation]:
        return selectors.conversation_list_for_user(user=self.request.user)

    @extend_schema(request=ConversationCreateSerializer, responses={201: ConversationSerializer})
    def post(self, request: AuthenticatedRequest) -> Response:
        """Open a conversation about a subject, at a level."""
        conversation = services.conversation_create(user=request.user, **self.validated(ConversationCreateSerializer))
        return Response(ConversationSerializer(conversation).data, status=status.HTTP_201_CREATED)


class ConversationDetail(ApiView):
    @extend_schema(responses=ConversationSerializer)
    def get(self, request: AuthenticatedRequest, conversation_id: UUID) -> Response:
        """One conversation, without its messages."""
        conversation = selectors.conversation_get_for_user(user=request.user, conversation_id=conversation_id)
        return Response(ConversationSerializer(conversation).data)

    @extend_schema(responses={204: None})
    def delete(self, request: AuthenticatedRequest, conversation_id: UUID) -> Response:
        """Delete a conversation with its messages; a running answer is cancelled."""
        conversation = selectors.conversation_get_for_user(user=request.user, conversation_id=conversation_id)
        services.conversation_delete(conversation=conversation)
        return Response(status=status.HTTP_204_NO_CONTENT)


class MessagePagination(CursorPagination):
    ordering = "position"


class MessageListCreate(ListAPIView[Message], ApiView):
    """The messages of a conversation, in order."""

    request: AuthenticatedRequest
    serializer_class = MessageSerializer
    pagination_class = MessagePagination

    def get_throttles(self) -> list[Any]:
        return [GenerationThrottle() if self.request.method == "POST" else RequestThrottle()]

    def get_queryset(self) -> QuerySet[Message]:
        conversation = selectors.conversation_get_for_user(
            user=self.request.user, conversation_id=self.kwargs["conversation_id"]
        )
        return selectors.message_list(conversation=conversation)

    @extend_schema(
        request=MessageAskSerializer,
        parameters=[
            OpenApiParameter("Idempotency-Key", OpenApiTypes.STR, "header", description="Makes a repeat harmless."),
            OpenApiParameter(
                "Accept", OpenApiTypes.STR, "header", description="text/event-stream to stream the answer."
            ),
        ],
        responses={202: TurnSerializer, (200, "text/event-stream"): OpenApiTypes.STR, 409: RefusalSerializer},
    )
    def post(self, request: AuthenticatedRequest, conversation_id: UUID) -> HttpResponseBase:
        """Ask. Streams `token` events and a last `done`, or answers 202 with the job.

        A streamed answer is given up when the client goes away and does not come back; one accepted with 202 is kept.
        """
        conversation = selectors.conversation_get_for_user(user=request.user, conversation_id=conversation_id)
        streamed = "text/event-stream" in request.headers.get("Accept", "")
        key = self.idempotency_key()
        asked = self.validated(MessageAskSerializer)
        if streamed:  # who names a request means to come back for it
            with streams.reserve(request.user) as place:
                turn = services.message_ask(
                    conversation=conversation, keep=key is not None, idempotency_key=key, **asked
                )
                return streams.response(turn.job, place)
        turn = services.message_ask(conversation=conversation, keep=True, idempotency_key=key, **asked)
        body = {**job_accepted(user=request.user, job_id=turn.job.id), "message": selectors.message_data(turn.answer)}
        return Response(body, status=status.HTTP_202_ACCEPTED)


class MessageFeedback(ApiView):
    @extend_schema(request=FeedbackSerializer, responses={200: FeedbackSerializer, 409: RefusalSerializer})
    def put(self, request: AuthenticatedRequest, conversation_id: UUID, message_id: UUID) -> Response:
        """Thumbs up or down on an answer, with a reason; replaces an earlier one."""
        message = selectors.message_get_for_user(
            user=request.user, conversation_id=conversation_id, message_id=message_id
        )
        feedback = services.feedback_give(message=message, **self.validated(FeedbackSerializer))
        return Response({"rating": feedback.rating, "reason": feedback.reason})

    @extend_schema(responses={204: None})
    def delete(self, request: AuthenticatedRequest, conversation_id: UUID, message_id: UUID) -> Response:
        """Withdraw the feedback."""
        message = selectors.message_get_for_user(
            user=request.user, conversation_id=conversation_id, message_id=message_id
        )
        services.feedback_withdraw(message=message)
        return Response(status=status.HTTP_204_NO_CONTENT)
