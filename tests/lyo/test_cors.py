"""Pages of other sites may call the API from a browser where LYO_CORS_ORIGINS names them, and nowhere else."""

import pytest
from django.test import Client, override_settings

PREFLIGHT = {
    "Origin": "https://app.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,idempotency-key,x-stainless-lang",
}
allowed = override_settings(CORS_ALLOWED_ORIGINS=["https://app.example"])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/v1/me"])
def test_a_preflight_is_answered_without_a_token(client: Client, path: str) -> None:
    with allowed:
        response = client.options(path, headers=PREFLIGHT)
    assert response.status_code == 200
    assert response["Access-Control-Allow-Origin"] == "https://app.example"
    assert "POST" in response["Access-Control-Allow-Methods"]
    allowed_headers = response["Access-Control-Allow-Headers"].split(", ")
    assert set(PREFLIGHT["Access-Control-Request-Headers"].split(",")) <= set(allowed_headers)
    assert "Access-Control-Allow-Credentials" not in response


def test_a_page_reads_what_a_refusal_says(client: Client) -> None:
    with allowed:
        response = client.get("/v1/models", headers={"Origin": "https://app.example"})
    assert response.status_code == 401
    assert response["Access-Control-Allow-Origin"] == "https://app.example"
    assert "Retry-After" in response["Access-Control-Expose-Headers"]


@pytest.mark.parametrize(
    ("origins", "path"),
    [([], "/v1/models"), (["https://other.example"], "/v1/models"), (["https://app.example"], "/admin/login/")],
)
@pytest.mark.django_db
def test_no_other_page_and_no_other_path_is_answered(client: Client, origins: list[str], path: str) -> None:
    with override_settings(CORS_ALLOWED_ORIGINS=origins):
        for response in (
            client.get(path, headers={"Origin": "https://app.example"}),
            client.options(path, headers=PREFLIGHT),
        ):
            assert "Access-Control-Allow-Origin" not in response
