"""The OpenAPI schema, which anybody may ask for: it is built once, at the first request, and then only sent."""

from threading import Lock
from typing import Any

from django.http import HttpResponse
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularAPIView
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

_lock = Lock()
_rendered: dict[str, bytes] = {}


class SchemaView(SpectacularAPIView):
    @extend_schema(exclude=True)
    def get(self, request: Request, *args: Any, **kwargs: Any) -> HttpResponse:
        """The schema as YAML or, where that is accepted, as JSON."""
        renderer: BaseRenderer = request.accepted_renderer
        with _lock:
            if renderer.format not in _rendered:
                schema = SchemaGenerator().get_schema(request=None, public=True)
                _rendered[renderer.format] = renderer.render(schema, renderer.media_type, {})
        return HttpResponse(
            _rendered[renderer.format],
            content_type=renderer.media_type,
            headers={"Content-Disposition": f'inline; filename="Lyo.{renderer.format}"'},
        )
