"""The API of OpenAI's clients: https://platform.openai.com/docs/api-reference."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.http import JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.response import Response

from apps.common.middleware import DeferredResponse
from apps.common.openai import COMMON_ERRORS, IDEMPOTENCY_KEY, ErrorSerializer, OpenAIView
from apps.common.places import Place
from apps.common.streaming import release_connection
from apps.common.throttles import GenerationThrottle
from apps.inference import completions, selectors, services
from apps.inference.serializers import (
    ChatCompletionCreateSerializer,
    ChatCompletionSerializer,
    EmbeddingCreateSerializer,
    EmbeddingListSerializer,
    ModelListSerializer,
    ModelSerializer,
)
from apps.jobs import streams
from apps.users.auth import AuthenticatedRequest

ERRORS = dict.fromkeys((400, 403, 404, 409, 413, 415, 499, 504), ErrorSerializer) | COMMON_ERRORS


class AnsweringView(OpenAIView):
    def deferred(self, make: Callable[[], Awaitable[HttpResponseBase]]) -> DeferredResponse:
        """Answer with what `make` returns or refuses with, while neither a thread nor a connection waits for it."""
        release_connection()

        async def answer() -> HttpResponseBase:
            try:
                return await make()
            except APIException as error:
                response = self.finalize_response(self.request, self.handle_exception(error))
                response.render()
                return response

        return DeferredResponse(answer)


class ModelList(OpenAIView):
    @extend_schema(operation_id="v1_models_list", responses={200: ModelListSerializer, **COMMON_ERRORS})
    def get(self, request: Request) -> Response:
        """The models that can be named: the base model first, then others of its own kind, then adapters, newest first.

        `tutor` is whatever the tutor answers the caller with.
        """
        return Response({"object": "list", "data": [_model_data(model) for model in selectors.model_list()]})


class ModelDetail(OpenAIView):
    @extend_schema(responses={200: ModelSerializer, 404: ErrorSerializer, **COMMON_ERRORS})
    def get(self, request: Request, model_id: str) -> Response:
        """One model, by its id or alias."""
        return Response(_model_data(selectors.model_get(model_id=model_id)))


class ChatCompletions(AnsweringView):
    throttle_classes = [GenerationThrottle]

    @extend_schema(
        request=ChatCompletionCreateSerializer,
        parameters=[IDEMPOTENCY_KEY],
        responses={
            (200, "application/json"): ChatCompletionSerializer,
            (200, "text/event-stream"): OpenApiTypes.STR,
            **ERRORS,
        },
    )
    def post(self, request: AuthenticatedRequest) -> HttpResponseBase:
        """Answer a conversation, at once or, with `stream`, as it is generated.

        Who hangs up gives the answer up, unless the request has an `Idempotency-Key`: its repeat gets the same answer.
        """
        asked = self.validated(ChatCompletionCreateSerializer)
        name, stream, include_usage = asked.pop("model"), asked.pop("stream"), asked.pop("include_usage")
        model = selectors.model_get(model_id=name, kind="chat")
        key = self.idempotency_key()
        with streams.reserve(request.user) as place:
            jobs = services.chat_create(user=request.user, model=model, idempotency_key=key, **asked)

            async def whole() -> HttpResponseBase:
                with streams.holding(place):
                    return await completions.chat_completion(jobs, name)

            async def streamed() -> HttpResponseBase:
                return await _event_stream(place, completions.chat_chunks(jobs, name, include_usage))

            return self.deferred(streamed if stream else whole)


class Embeddings(AnsweringView):
    throttle_classes = [GenerationThrottle]

    @extend_schema(
        request=EmbeddingCreateSerializer,
        parameters=[IDEMPOTENCY_KEY],
        responses={200: EmbeddingListSerializer, **ERRORS},
    )
    def post(self, request: AuthenticatedRequest) -> HttpResponseBase:
        """Turn texts into vectors of length 1, of which alike texts have alike ones."""
        asked = self.validated(EmbeddingCreateSerializer)
        model = selectors.model_get(model_id=asked["model"], kind="embed")
        key = self.idempotency_key()
        with streams.reserve(request.user) as place:
            job = services.embedding_create(user=request.user, model=model, texts=asked["input"], idempotency_key=key)

            async def whole() -> HttpResponseBase:
                with streams.holding(place):
                    answer = await completions.embedding_list(job, asked["model"], asked["encoding_format"])
                # A thread, for a hundred thousand numbers take long enough to hold up the streams of others.
                return await sync_to_async(JsonResponse, thread_sensitive=False)(answer)

            return self.deferred(whole)


def _model_data(model: selectors.ServedModel) -> dict[str, Any]:
    created = int(model.created_at.timestamp()) if model.created_at else 0
    return {
        "id": model.id,
        "object": "model",
        "created": created,
        "owned_by": "lyo",
        "max_model_len": model.context_tokens,
    }


async def _event_stream(place: Place, events: AsyncGenerator[str, None]) -> StreamingHttpResponse:
    """Begins with the first event, a keep-alive at the latest, so that a failure before it can still set the status."""
    try:
        first = await anext(events)
    except BaseException:
        streams.leave(place)
        raise

    async def body() -> AsyncIterator[str]:
        with streams.holding(place):
            yield first
            async for event in events:
                yield event

    return streams.event_stream(body())
