"""The page of engines: what each worker's is doing, and the adapters in its memory. No table is behind it."""

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.contrib.auth.decorators import permission_required
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from redis.exceptions import RedisError

from apps.common.formats import duration
from apps.inference.selectors import engine_list

SHORT_DIGEST = 12


@permission_required("jobs.view_job", raise_exception=True)
def engines(request: HttpRequest) -> TemplateResponse:
    try:
        table = _engine_table(engine_list())
    except RedisError:
        table = None
    return TemplateResponse(
        request, "admin/engines.html", {**admin.site.each_context(request), "title": "Engines", "table": table}
    )


def _urls() -> list[URLPattern]:
    return [path("engines/", admin.site.admin_view(engines), name="engines")]


admin.site.extra_urls = _urls  # type: ignore[attr-defined]  # unfold's site asks for it


def _engine_table(engines: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "headers": ["Worker", "Model", "Device", "Up", "Batch", "Waiting", "Tokens/s", "KV cache", "Prefix hits"],
        "rows": [_engine_row(engine) for engine in engines],
    }


def _engine_row(engine: dict[str, Any]) -> dict[str, Any]:
    """An engine's cells and, below them, the table of its adapters."""
    stats = engine["stats"]
    cells = [
        f"{engine['worker']}, process {engine['pid']}",
        f"{engine['model']} {_short(engine['digest'])}",
        f"{engine['device']}, {engine['dtype']}",
        duration(timedelta(seconds=engine["at"] - engine["started_at"])),
        f"{stats['running']} of {stats['batch_limit']}",
        f"{stats['waiting']}: {stats['trouble']}" if stats["trouble"] else stats["waiting"],
        f"{engine['tokens_per_second']:.1f}",
        f"{_share(stats['kv_tokens'], stats['kv_capacity_tokens'])} used, "
        f"{_share(stats['kv_retained_tokens'], stats['kv_capacity_tokens'])} kept",
        _share(stats["cached_tokens"], stats["prompt_tokens"]),
    ]
    adapters = [
        [
            adapter["name"],
            adapter["rank"],
            f"{adapter['megabytes']:.1f}",
            "yes" if adapter["pinned"] else "no",
            adapter["running"],
            f"{duration(timedelta(seconds=engine['at'] - adapter['last_used']))} ago",
        ]
        for adapter in stats["adapters"]
    ]
    headers = ["Adapter", "Rank", "MB", "Pinned", "Running", "Last used"]
    return {"cols": cells, **({"table": {"headers": headers, "rows": adapters}} if adapters else {})}


def _short(digest: str) -> str:
    """A sha256 to be told apart by; the name that a remote server has instead is kept whole."""
    return digest if ":" in digest else digest[:SHORT_DIGEST]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"
