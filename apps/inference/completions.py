"""What became of jobs, as OpenAI's clients read it."""

import asyncio
import base64
import struct
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from hashlib import sha256
from typing import Any

from asgiref.sync import sync_to_async
from django.http import JsonResponse

from apps.common.errors import ServiceUnavailable, openai_error
from apps.inference.errors import JobFailed
from apps.jobs import streams
from apps.jobs.models import Job, State
from apps.jobs.streams import Ended, Entry, Interrupted, KeepAlive

# --- chat ---


async def chat_completion(jobs: list[Job], model: str) -> JsonResponse:
    """The answer, once all its choices have ended; raises `JobFailed`.

    It is put together on a thread: log-probabilities are enough to hold up everybody's streams.
    """
    ended = await _succeeded(jobs)
    return await sync_to_async(lambda: JsonResponse(_completion(ended, model)), thread_sensitive=False)()


def _completion(ended: list[Job], model: str) -> dict[str, Any]:
    return {
        **_head(ended[0], model, "chat.completion"),
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": result["text"], "refusal": None},
                "logprobs": _logprobs(result["logprobs"]) if "logprobs" in result else None,
                "finish_reason": result["finish_reason"],
            }
            for index, result in enumerate(map(_result, ended))
        ],
        "usage": _usage(ended),
    }


async def chat_chunks(jobs: list[Job], model: str, include_usage: bool) -> AsyncGenerator[str, None]:
    """The answer as server-sent events: for each choice its role, its text as it comes and why it ended, then `[DONE]`.

    Raises `JobFailed` when the first thing that happens is a failure, and `ServiceUnavailable` when it is the end of
    this process; what happens later becomes the last event.
    """
    head = {**_head(jobs[0], model, "chat.completion.chunk"), **({"usage": None} if include_usage else {})}
    shown = [0] * len(jobs)  # log-probabilities of each choice
    ended = list(jobs)
    begun = False

    def chunk(index: int, delta: dict[str, str], logprobs: Any = None, finish_reason: str | None = None) -> str:
        shown[index] += len(logprobs or ())
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": _logprobs(logprobs) if logprobs else None,
            "finish_reason": finish_reason,
        }
        return streams.sse({**head, "system_fingerprint": _fingerprint(ended[index]), "choices": [choice]})

    async with aclosing(_merged(jobs)) as events:
        async for index, event in events:
            failed = isinstance(event, Ended) and event.job.state != State.SUCCEEDED
            if isinstance(event, Interrupted) and not begun:
                raise ServiceUnavailable(streams.RESTARTING, code="restarting")
            if not begun and not failed:
                begun = True
                for i in range(len(jobs)):
                    yield chunk(i, {"role": "assistant", "content": ""})
            match event:
                case Entry():
                    yield chunk(index, {"content": event.text}, event.logprobs)
                case KeepAlive():
                    yield ": keep-alive\n\n"
                case Interrupted():
                    error = openai_error(503, "restarting", streams.RESTARTING)
                    yield streams.sse(error)
                    return
                case Ended(job) if not failed:
                    ended[index] = job
                    rest = _result(job).get("logprobs", [])[shown[index] :]  # of text that came from the row
                    yield chunk(index, {}, rest, _result(job)["finish_reason"])
                case Ended(job) if begun:
                    yield streams.sse(JobFailed(job).body)
                    return
                case Ended(job):
                    raise JobFailed(job)
    if include_usage:
        yield streams.sse({**head, "system_fingerprint": _fingerprint(ended[0]), "choices": [], "usage": _usage(ended)})
    yield streams.sse("[DONE]")


async def _merged(jobs: list[Job]) -> AsyncGenerator[tuple[int, Entry | KeepAlive | Interrupted | Ended], None]:
    """What happens to each of the jobs, with its index, as it happens."""
    followers = [streams.follow(job) for job in jobs]
    awaited = {asyncio.ensure_future(anext(follower)): i for i, follower in enumerate(followers)}
    try:
        while awaited:
            done, _ = await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index, event = awaited.pop(task), task.result()
                if not isinstance(event, Ended | Interrupted):
                    awaited[asyncio.ensure_future(anext(followers[index]))] = index
                yield index, event
    finally:
        for task in awaited:
            task.cancel()


def _head(job: Job, model: str, kind: str) -> dict[str, Any]:
    """What all parts of an answer have in common."""
    return {
        "id": f"chatcmpl-{job.id.hex}",
        "object": kind,
        "created": int(job.created_at.timestamp()),
        "model": model,
        "system_fingerprint": _fingerprint(job),
    }


def _fingerprint(job: Job) -> str | None:
    """Of the weights and the adapter that answered; None until the job has ended."""
    result = _result(job)
    if "model_digest" not in result:
        return None
    return "fp_" + sha256(f"{result['model_digest']} {result['adapter'] or ''}".encode()).hexdigest()[:12]


def _usage(jobs: Iterable[Job]) -> dict[str, Any]:
    """The prompt counts once, however many choices it got."""
    usages = [_result(job)["usage"] for job in jobs]
    prompt, completion = usages[0]["prompt_tokens"], sum(usage["completion_tokens"] for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": usages[0].get("prompt_tokens_details", {"cached_tokens": 0}),
    }


def _logprobs(tokens: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """From `TokenLogprob`s as plain data."""
    content = [
        {
            **_logprob(token),
            "top_logprobs": [_logprob(other) for other in token["top"]],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _logprob(token: dict[str, Any]) -> dict[str, Any]:
    return {"token": token["text"], "logprob": token["logprob"], "bytes": token["bytes"]}


# --- embeddings ---


async def embedding_list(job: Job, model: str, encoding: str) -> dict[str, Any]:
    """The vectors as lists of numbers, or as little-endian float32 in base64; raises `JobFailed`."""
    (job,) = await _succeeded([job])
    result = _result(job)
    tokens = result["tokens"]
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector if encoding == "base64" else _floats(vector)}
            for index, vector in enumerate(result["vectors"])
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _floats(packed: str) -> list[float]:
    data = base64.b64decode(packed)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


async def _succeeded(jobs: list[Job]) -> list[Job]:
    """The rows, once all have ended."""
    ended = await asyncio.gather(*map(streams.wait, jobs))
    for job in ended:
        if job.state != State.SUCCEEDED:
            raise JobFailed(job)
    return ended


def _result(job: Job) -> dict[str, Any]:
    return job.result or {}
