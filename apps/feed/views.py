from typing import Any
from uuid import UUID

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import status
from rest_framework.response import Response
from rest_framework.utils.urls import replace_query_param

from apps.common.serializers import RefusalSerializer
from apps.common.views import ApiView
from apps.feed import selectors, services
from apps.feed.entries import Entry
from apps.feed.serializers import (
    AcceptedSerializer,
    EventsSerializer,
    FeedQuerySerializer,
    FeedSerializer,
    FollowListSerializer,
    FollowSerializer,
    PreferencesSerializer,
    WhySerializer,
)
from apps.users.auth import AuthenticatedRequest

HEADER = "X-Lyo-Feed"
STATE = OpenApiParameter(
    HEADER,
    str,
    OpenApiParameter.HEADER,
    response=True,
    enum=["scored", "stale", "trending", "cold", "general"],
    description="stale: workers have not seen yet what you did last. trending: they have seen nothing of it. cold: you "
    "have done nothing yet. general: for everybody.",
)


class FeedView(ApiView):
    request: AuthenticatedRequest


class Feed(FeedView):
    @extend_schema(parameters=[FeedQuerySerializer, STATE], responses={200: FeedSerializer, 410: RefusalSerializer})
    def get(self, request: AuthenticatedRequest) -> Response:
        """What to learn next. Pages of one ranking go on as they began, while a newer one is made; after half an hour
        in which none is asked for, 410."""
        page = services.feed_page(user=request.user, **self.queried(FeedQuerySerializer))
        following = None
        if page.following is not None:
            url = replace_query_param(request.build_absolute_uri(), "cursor", f"{page.number}.{page.following}")
            following = replace_query_param(url, "educational_share", str(page.share))
        results = [{"item": card, "reasons": entry.said} for entry, card in page.entries]
        return Response({"next": following, "results": results}, headers={HEADER: page.state})


class Why(FeedView):
    @extend_schema(responses=WhySerializer)
    def get(self, request: AuthenticatedRequest, item_id: UUID) -> Response:
        """What each part contributes to an item's place in your feed."""
        entry, weights = services.entry_get(user=request.user, item_id=item_id)
        return Response(_why(entry, weights))


class Events(FeedView):
    @extend_schema(request=EventsSerializer, responses={201: AcceptedSerializer})
    def post(self, request: AuthenticatedRequest) -> Response:
        """Tell what was shown and what you did with it: all events are kept, or none."""
        accepted = services.events_record(user=request.user, **self.validated(EventsSerializer))
        return Response({"accepted": accepted}, status=status.HTTP_201_CREATED)


class Preferences(FeedView):
    @extend_schema(responses=PreferencesSerializer)
    def get(self, request: AuthenticatedRequest) -> Response:
        """What you want of your feed."""
        return Response({"educational_share": selectors.reader_get(user=request.user).educational_share})

    @extend_schema(request=PreferencesSerializer, responses=PreferencesSerializer)
    def patch(self, request: AuthenticatedRequest) -> Response:
        """Set how much of your feed teaches."""
        if changes := self.validated(PreferencesSerializer, partial=True):
            services.reader_update(user=request.user, **changes)
        return self.get(request)


class Follows(FeedView):
    @extend_schema(responses=FollowListSerializer)
    def get(self, request: AuthenticatedRequest) -> Response:
        """The authors whom you follow."""
        return Response({"authors": selectors.follow_list(user=request.user)})

    @extend_schema(request=FollowSerializer, responses=FollowListSerializer)
    def post(self, request: AuthenticatedRequest) -> Response:
        """Follow an author."""
        services.author_follow(user=request.user, **self.validated(FollowSerializer))
        return self.get(request)

    @extend_schema(responses={204: None}, parameters=[FollowSerializer])
    def delete(self, request: AuthenticatedRequest) -> Response:
        """Follow an author, named in the query, no more."""
        services.author_unfollow(user=request.user, **self.queried(FollowSerializer))
        return Response(status=status.HTTP_204_NO_CONTENT)


def _why(entry: Entry, weights: dict[str, float]) -> dict[str, Any]:
    contributions = entry.contributions(weights)
    parts = [
        {"name": name, "value": entry.parts.get(name, 0.0), "weight": weights[name], "contribution": round(found, 4)}
        for name, found in contributions.items()
    ]
    score = round(sum(contributions.values()), 4)
    return {
        "item": entry.item,
        "score": score,
        "propensity": entry.propensity,
        "parts": parts,
        "reasons": entry.said,
    }
