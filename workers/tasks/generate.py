"""Answers: a `chat` job's messages become a prompt, the engine's tokens become its stream."""

from typing import Any

from workers.models.template import fit
from workers.protocols import GenerateRequest, Sampling
from workers.tasks.claimed import JobRun, job_task
from workers.tasks.runtime import have_adapter, runtime

TOGETHER = 2  # crashes beside others; then it may be this very job that takes a batch or a worker down


@job_task("workers.generate")
def generate(job: JobRun) -> dict[str, Any]:
    """The result has `text`, `finish_reason`, `usage`, and who answered: `model`, `model_digest`, `adapter`.

    The request's `sampling` has the fields of `Sampling`; `adapter`, which may be left out, is a `name@digest`.
    """
    model, engine = runtime()[:2]
    if adapter := job.request.get("adapter"):
        have_adapter(adapter)
    sampling = Sampling(**{**job.request["sampling"], "stop": tuple(job.request["sampling"].get("stop", ()))})
    budget = engine.context_tokens - sampling.max_tokens
    prompt = fit(model.tokenizer, job.request["messages"], budget, job.request["overflow"])
    deadline = job.claim.job.deadline_at
    handle = engine.submit(
        GenerateRequest(
            id=str(job.id),
            prompt=tuple(prompt),
            delivered=job.delivered,
            sampling=sampling,
            deadline=deadline.timestamp() if deadline else None,
            adapter=adapter,
            alone=job.claim.job.crashes >= TOGETHER,
        ),
        job.write,
    )
    job.on_stop(handle.cancel)
    outcome = handle.wait()
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
    if sampling.logprobs is not None:  # as streamed: of the tokens whose text is in the answer
        result["logprobs"] = [token for entry in job.entries for token in entry.logprobs or ()]
    return result
