"""The model and the engine of this process: loaded once, before the worker takes its first job."""

from functools import cache
from typing import Any, NamedTuple

import structlog
import torch
from celery.signals import worker_init, worker_shutting_down

from lyo import env
from workers.engine.loop import EngineThread, LocalEngine
from workers.models.load import LoadedModel, load
from workers.protocols import Engine
from workers.tasks import metrics

logger = structlog.get_logger(__name__)


class Runtime(NamedTuple):
    model: LoadedModel
    engine: Engine
    thread: EngineThread


@cache
def runtime() -> Runtime:
    if env.TORCH_THREADS:
        torch.set_num_threads(env.TORCH_THREADS)
    model = load(env.MODEL, env.MODELS_DIR, device=env.DEVICE, dtype=env.DTYPE)
    engine = LocalEngine.over(
        model, kv_cache_mb=env.KV_CACHE_MB, context_tokens=env.CONTEXT_TOKENS, batch_limit=env.MAX_BATCH
    )
    thread = EngineThread(engine)
    thread.start()
    metrics.watch(engine)
    return Runtime(model, engine, thread)


@worker_init.connect
def load_before_consuming(**_: Any) -> None:
    """A worker without its model must not take jobs: Celery goes on after an ordinary exception, but not after this."""
    try:
        runtime()
    except Exception as error:
        logger.exception("the model cannot be loaded")
        raise SystemExit(1) from error


@worker_shutting_down.connect
def hand_back(**_: Any) -> None:
    """End the step at hand; the jobs go back to the queue, and another worker continues them."""
    runtime().thread.stop()
