"""Every path that Lyo answers."""

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import include, path
from drf_spectacular.views import SpectacularSwaggerView

from apps.training.urls import openai_urlpatterns
from lyo import ops
from lyo.docs import SchemaView


def front(request: HttpRequest) -> HttpResponse:
    """Send staff to their desk, and others to what describes the API."""
    user = request.user
    return redirect("admin:index" if user.is_authenticated and user.is_staff else "docs")


urlpatterns = [
    path("", front),
    path("livez", ops.livez),
    path("readyz", ops.readyz),
    path("metrics", ops.metrics),
    path("admin/", admin.site.urls),
    path("api/schema/", SchemaView.as_view(), name="schema"),
    path("api/docs/", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
    path("api/v1/", include("apps.users.urls")),
    path("api/v1/", include("apps.jobs.urls")),
    path("api/v1/", include("apps.content.urls")),
    path("api/v1/", include("apps.feed.urls")),
    path("api/v1/", include("apps.search.urls")),
    path("api/v1/", include("apps.tutor.urls")),
    path("api/v1/", include("apps.training.urls")),
    path("v1/", include("apps.inference.urls")),
    path("v1/", include(openai_urlpatterns)),
]

handler400 = "apps.common.errors.handler400"
handler403 = "apps.common.errors.handler403"
handler404 = "apps.common.errors.handler404"
handler500 = "apps.common.errors.handler500"
