"""Refusals that only models and their answers have."""

from typing import Any

from rest_framework import status
from rest_framework.exceptions import APIException, NotFound

from apps.common.errors import RETRY_AFTER_S, openai_error
from apps.jobs.models import Job, State

PARAMS = {"context_length_exceeded": "messages", "unsupported_schema": "response_format"}
CLIENT_CLOSED_REQUEST = 499  # gRPC's CANCELLED over HTTP; OpenAI's clients would repeat a 409 or a 5xx by themselves


class ModelNotFound(NotFound):
    default_code = "model_not_found"
    param = "model"

    def __init__(self, model_id: str) -> None:
        super().__init__(f"The model {model_id!r} does not exist or does not serve this.")


class JobFailed(APIException):
    """The end of a job that brought no answer."""

    def __init__(self, job: Job) -> None:
        error = job.error or {"code": "cancelled", "detail": "The request was cancelled."}
        super().__init__(error["detail"], error["code"])
        self.error = error
        self.param = PARAMS.get(error["code"])
        match job.state, error["code"]:
            case State.CANCELLED, _:
                self.status_code = CLIENT_CLOSED_REQUEST
            case State.FAILED, "deadline_exceeded":
                self.status_code = status.HTTP_504_GATEWAY_TIMEOUT
            case State.FAILED, "remote_unavailable" | "adapters_full":
                self.status_code, self.wait = status.HTTP_503_SERVICE_UNAVAILABLE, RETRY_AFTER_S
            case State.FAILED, _:
                self.status_code = status.HTTP_400_BAD_REQUEST

    @property
    def body(self) -> dict[str, Any]:
        """For a stream, whose status has been sent."""
        return openai_error(self.status_code, self.error["code"], self.error["detail"], self.param)
