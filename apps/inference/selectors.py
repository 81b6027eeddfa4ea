"""The models that a client may name, and the engines that answer."""

import json
from dataclasses import dataclass
from typing import Any

from apps.common import redis
from apps.inference.errors import ModelNotFound
from lyo import env

ENGINE_KEY = "lyo:engine:"  # then the worker's name and process: where the cache server has its engine's last report


@dataclass(frozen=True, slots=True)
class ServedModel:
    id: str
    kind: str  # of the jobs that it serves
    alias: str | None = None


EMBEDDER = ServedModel("all-MiniLM-L6-v2", kind="embed", alias="embedding")


def model_list() -> list[ServedModel]:
    """All models, the default one first."""
    return [ServedModel(env.MODEL, kind="chat"), EMBEDDER]


def model_get(*, model_id: str, kind: str | None = None) -> ServedModel:
    """The model of that id or alias; raises `ModelNotFound`, also where it does not serve `kind`."""
    for model in model_list():
        if model_id in (model.id, model.alias) and kind in (None, model.kind):
            return model
    raise ModelNotFound(model_id)


def engine_list() -> list[dict[str, Any]]:
    """The last report of every engine that is alive, by worker; raises `RedisError` where the cache server is away.

    Each has `worker`, `pid`, `model`, `digest`, `device`, `dtype`, the Unix times `at` (of the report) and
    `started_at`, `tokens_per_second` of the last seconds, and `stats`: the fields of the worker's `EngineStats`.
    """
    cache = redis.cache()
    reports = (cache.get(key) for key in sorted(set(cache.scan_iter(f"{ENGINE_KEY}*", count=1000))))
    return [json.loads(report) for report in reports if report]
