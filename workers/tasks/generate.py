"""Answers: a `chat` job's messages become a prompt, the engine's tokens become its stream."""

from typing import Any

from lyo import env
from workers.models.template import fit
from workers.protocols import GenerateRequest, Outcome, Refused, Sampling
from workers.tasks.claimed import JobRun, job_task
from workers.tasks.runtime import have_adapter, runtime

TOGETHER = 2  # interruptions beside others; then it may be this very job that takes a batch or a worker down


@job_task("workers.generate")
def generate(job: JobRun) -> dict[str, Any]:
    """The result has `text`, `finish_reason`, `usage`, and who answered: `model`, `model_digest`, `adapter`.

    The request's `sampling` has the fields of `Sampling`, of which `max_tokens` may be None: LYO_DEFAULT_MAX_TOKENS, or
    what the context has room for. `adapter`, which may be left out, is a `name@digest`.
    """
    model, engine = runtime()[:2]
    adapter = job.request.get("adapter")
    if adapter:
        have_adapter(adapter)
    while True:
        context_tokens = engine.context_tokens
        try:
            outcome = _answer(job, adapter)
            break
        except Refused as refused:
            if engine.context_tokens < context_tokens:  # a remote server's own limit, which it told just now
                continue
            if refused.code == "context_length_exceeded":  # in the words that clients of OpenAI look for
                raise Refused(
                    refused.code, f"This model's maximum context length is {context_tokens} tokens: {refused}"
                ) from refused
            raise
    result: dict[str, Any] = {
        "text": outcome.text,
        "finish_reason": outcome.finish_reason,
        "usage": {
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": outcome.cached_tokens},
        },
        "model": model.name,
        "model_digest": model.digest,
        "adapter": adapter,
    }
    if job.request["sampling"].get("logprobs") is not None:  # as streamed: of the tokens whose text is in the answer
        result["logprobs"] = [token for entry in job.entries for token in entry.logprobs or ()]
    return result


def _answer(job: JobRun, adapter: str | None) -> Outcome:
    """Have the engine answer, within the context that it has now."""
    model, engine = runtime()[:2]
    asked = job.request["sampling"]
    least = asked["max_tokens"] or 1  # of room for the answer
    prompt = fit(model.tokenizer, job.request["messages"], engine.context_tokens - least, job.request["overflow"])
    max_tokens = asked["max_tokens"] or min(env.DEFAULT_MAX_TOKENS, engine.context_tokens - len(prompt))
    deadline = job.claim.job.deadline_at
    handle = engine.submit(
        GenerateRequest(
            id=str(job.id),
            prompt=tuple(prompt),
            delivered=job.delivered,
            sampling=Sampling(**{**asked, "max_tokens": max_tokens, "stop": tuple(asked.get("stop", ()))}),
            deadline=deadline.timestamp() if deadline else None,
            adapter=adapter,
            alone=job.claim.job.crashes + job.claim.job.lease_losses >= TOGETHER,
        ),
        job.write,
    )
    job.on_stop(handle.cancel)
    return handle.wait()
