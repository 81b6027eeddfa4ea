from collections.abc import Iterator

import httpx
import openai
import pytest


@pytest.fixture
def ai(live: str, token: str) -> Iterator[openai.OpenAI]:
    """The official client, as a user would set it up, but for its habit of trying again."""
    with openai.OpenAI(base_url=f"{live}/v1", api_key=token, max_retries=0, timeout=20) as client:
        yield client


@pytest.fixture
def http(live: str, token: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{live}/v1", headers={"Authorization": f"Bearer {token}"}, timeout=20) as client:
        yield client
