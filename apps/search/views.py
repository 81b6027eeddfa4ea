from drf_spectacular.utils import extend_schema
from rest_framework.response import Response
from rest_framework.utils.urls import replace_query_param

from apps.common.views import ApiView
from apps.content.selectors import item_card
from apps.search import selectors, services
from apps.search.serializers import (
    SearchQuerySerializer,
    SearchSerializer,
    SuggestionsSerializer,
    SuggestQuerySerializer,
)
from apps.users.auth import AuthenticatedRequest


class Search(ApiView):
    @extend_schema(parameters=[SearchQuerySerializer], responses=SearchSerializer)
    def get(self, request: AuthenticatedRequest) -> Response:
        """Items by their words and their meaning; of what fits about as well, what teaches you most comes first."""
        asked = self.queried(SearchQuerySerializer)
        text, start, size = asked.pop("q"), asked.pop("cursor"), asked.pop("page_size")
        found = services.search(user=request.user, text=text, filters=asked)
        if not start:
            services.query_log(user=request.user, found=found)
        page = found.order[start : start + size]
        scores = dict(page)
        items = selectors.found_items(ids=[key for key, _ in page], stems=found.stems)
        following = None
        if start + size < len(found.order):
            following = replace_query_param(request.build_absolute_uri(), "cursor", str(start + size))
        understood = found.understanding
        query = {
            "text": found.text,
            "corrected": found.text != " ".join(text.split()),
            "intent": understood.intent if understood else None,
            "subject": (understood.subject or None) if understood else None,
            "level": (understood.level or None) if understood else None,
            "adapter": understood.adapter if understood else None,
            "degraded": understood is None,
        }
        results = [
            {**item_card(item), "snippet": snippet, "score": round(scores[item.pk], 4)} for item, snippet in items
        ]
        return Response(
            {"query": query, "results": results, "facets": selectors.facets(found.facts), "next": following}
        )


class Suggest(ApiView):
    @extend_schema(parameters=[SuggestQuerySerializer], responses=SuggestionsSerializer)
    def get(self, request: AuthenticatedRequest) -> Response:
        """Ways to go on with what has been typed: topics, courses, titles, and what others searched for."""
        (text,) = self.queried(SuggestQuerySerializer).values()
        return Response({"suggestions": services.suggest(user=request.user, text=text)})
