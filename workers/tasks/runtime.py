"""The model and the engine of this process: made ready before the worker takes its first job."""

import os
import signal
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import structlog
from celery.signals import worker_init, worker_shutting_down

from apps.inference import store
from apps.jobs.watch import heartbeat
from lyo import env
from workers.engine.remote import RemoteEngine
from workers.engine.threads import aside
from workers.models.folder import tokenizer_folder
from workers.models.registry import resolve
from workers.models.template import turn_marks
from workers.models.tokenizer import Tokenizer
from workers.protocols import Engine, EngineCrashed, Refused
from workers.tasks.engine_watch import EngineWatch

logger = structlog.get_logger(__name__)


class Model(Protocol):
    """What tasks need to know of the model. `digest` tells whose weights answer."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


class Runtime(NamedTuple):
    model: Model
    engine: Engine
    device: str
    dtype: str


def have_adapter(name: str) -> None:
    """Have the adapter where engines read it; where the store fails, `EngineCrashed`: the job is tried again."""
    try:
        store.fetch(name.rpartition("@")[2])
    except Exception as error:
        raise EngineCrashed(f"adapter {name} cannot be fetched: {error}") from error


@cache
def runtime() -> Runtime:
    return remote_runtime() if env.ENGINE == "remote" else local_runtime()


def local_runtime() -> Runtime:
    import torch

    from workers.engine.loop import LocalEngine
    from workers.models.load import LoadedModel, load

    if env.TORCH_THREADS:
        torch.set_num_threads(env.TORCH_THREADS)

    def made() -> tuple[LoadedModel, LocalEngine, str]:
        loaded = load(env.MODEL, env.MODELS_DIR, device=env.DEVICE, dtype=env.DTYPE)
        device = str(loaded.model.device)
        engine = LocalEngine.over(
            loaded,
            kv_cache_mb=env.KV_CACHE_MB,
            context_tokens=env.CONTEXT_TOKENS,
            batch_limit=env.MAX_BATCH,
            adapters_folder=env.ADAPTERS_DIR,
            max_adapters=env.MAX_ADAPTERS,
            adapters_mb=env.ADAPTERS_MB,
            max_lora_rank=env.MAX_LORA_RANK,
            idle_s=env.KV_IDLE_S,
        )
        return loaded, engine, device

    loaded, engine, device = aside(made)
    engine.start(on_broken=stop_worker)
    return Runtime(loaded, engine, device, engine.numerics)


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model of which only the tokenizer is here: not the digest of its weights is known, but the server's name."""

    name: str
    tokenizer: Tokenizer
    engine: RemoteEngine

    @property
    def digest(self) -> str:
        return f"remote:{self.engine.model}"


def remote_runtime() -> Runtime:
    spec = resolve(env.MODEL)
    tokenizer = Tokenizer.from_folder(tokenizer_folder(spec, env.MODELS_DIR))
    engine = RemoteEngine(
        env.REMOTE_URL,
        api_key=env.REMOTE_API_KEY,
        model=env.REMOTE_MODEL,
        tokenizer=tokenizer,
        stop_ids=frozenset({tokenizer.control("<eos>"), turn_marks(tokenizer)[1]}),
        context_tokens=env.CONTEXT_TOKENS,
        batch_limit=env.MAX_BATCH,
        adapters_folder=env.REMOTE_ADAPTERS_DIR,
        first_token_s=env.REMOTE_FIRST_TOKEN_S,
        next_token_s=env.REMOTE_NEXT_TOKEN_S,
    )
    engine.start()
    return Runtime(RemoteModel(spec.name, tokenizer, engine), engine, engine.url, "remote")


def stop_worker() -> None:
    """End this process in good order; whoever started it starts another, with a model that works."""
    os.kill(os.getpid(), signal.SIGTERM)


@worker_init.connect
def load_before_consuming(sender: Any, **_: Any) -> None:
    """A worker without its model must not take jobs: Celery goes on after an ordinary exception, but not after this."""
    try:
        model, engine, device, dtype = runtime()
        if model.tokenizer.longest_token > env.LONGEST_TOKEN:
            raise Refused("wrong_setting", f"LYO_LONGEST_TOKEN must be {model.tokenizer.longest_token} for this model")
    except Exception as error:
        logger.exception("the model cannot be loaded")
        raise SystemExit(1) from error

    def about() -> dict[str, str]:
        return {"model": model.name, "digest": model.digest, "device": device, "dtype": dtype}

    heartbeat.watch(lambda: engine.stats().step_seconds)
    EngineWatch(engine, worker=sender.hostname, about=about).start()


@worker_shutting_down.connect
def hand_back(**_: Any) -> None:
    """End the step at hand; the jobs go back to the queue, and another worker continues them."""
    runtime().engine.close()
