"""A job that does nothing: measures the job layer, and lets tests drive it without a model."""

from typing import Any

from workers.tasks.claimed import JobRun, job_task


@job_task("workers.ping")
def ping(job: JobRun) -> dict[str, Any]:
    return {"pong": job.request.get("ping")}
