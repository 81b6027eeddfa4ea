"""The OpenAPI schema, which anybody may ask for: it is built once, at the first request, and then only sent."""

from functools import cache
from threading import Lock
from typing import Any

from django.http import HttpResponse
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiJsonRenderer, OpenApiYamlRenderer
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularAPIView
from rest_framework.request import Request

_building = Lock()  # those who ask meanwhile wait for the one who builds


class SchemaView(SpectacularAPIView):
    @extend_schema(exclude=True)
    def get(self, request: Request, *args: Any, **kwargs: Any) -> HttpResponse:
        """The schema as YAML or, where that is asked for, as JSON."""
        renderer = request.accepted_renderer
        with _building:
            return HttpResponse(rendered(renderer.format), content_type=renderer.media_type)


@cache
def rendered(form: str) -> bytes:
    renderer = OpenApiJsonRenderer() if form == OpenApiJsonRenderer.format else OpenApiYamlRenderer()
    return bytes(renderer.render(_schema(), renderer_context={}))


@cache
def _schema() -> Any:
    return SchemaGenerator().get_schema(request=None, public=True)
