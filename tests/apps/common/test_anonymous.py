"""What anybody may ask is cheap, and limited by address."""

import json
from collections.abc import Iterator

import httpx
import pytest
import yaml
from drf_spectacular.generators import SchemaGenerator

from apps.common import redis
from apps.common.addresses import group_of
from apps.common.throttles import ANONYMOUS
from apps.users.models import User
from lyo import docs, ops
from tests.apps.conftest import PASSWORD

pytestmark = pytest.mark.django_db(transaction=True)

LOGIN = {"username": "ada", "password": PASSWORD}
ASKED = [
    ("GET", "/api/schema/", None, 200),
    ("GET", "/api/docs/", None, 200),
    ("GET", "/admin/login/", None, 200),
    ("GET", "/admin/", None, 302),
    ("GET", "/admin", None, 301),
    ("GET", "/", None, 302),
    ("GET", "/nothing", None, 404),
    ("POST", "/api/v1/auth/login", LOGIN, 200),
    ("GET", "/api/v1/me", None, 401),
    ("POST", "/v1/chat/completions", {}, 401),
]


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Who is not logged in may ask three times."""
    monkeypatch.setattr(ANONYMOUS, "interval", 20_000_000)
    monkeypatch.setattr(ANONYMOUS, "capacity", 60_000_000)
    redis.cache().delete(ANONYMOUS.place("127.0.0.1"))
    yield
    redis.cache().delete(ANONYMOUS.place("127.0.0.1"))


@pytest.mark.parametrize(("method", "path", "body", "status"), ASKED)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer made-up", "Cookie": "sessionid=made-up"}])
def test_a_stranger_is_limited_by_address(
    live: str, learner: User, three: None, method: str, path: str, body: object, status: int, headers: dict[str, str]
) -> None:
    def ask() -> httpx.Response:
        return httpx.request(method, f"{live}{path}", json=body, headers=headers, timeout=30)

    statuses = [ask().status_code for _ in range(3)]
    if not headers:
        assert statuses == [status] * 3
    refusal = ask()
    assert refusal.status_code == 429
    assert 0 < int(refusal.headers["Retry-After"]) <= 20


def test_who_is_logged_in_does_not_feel_the_strangers_of_the_same_address(live: str, token: str, three: None) -> None:
    while httpx.get(f"{live}/api/v1/me").status_code != 429:
        pass
    assert httpx.get(f"{live}/api/v1/me", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    for path in ("/livez", "/readyz", "/metrics"):
        assert httpx.get(f"{live}{path}", timeout=30).status_code != 429


def test_the_schema_is_built_once_for_both_of_its_forms(live: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = SchemaGenerator.get_schema
    monkeypatch.setattr(SchemaGenerator, "get_schema", lambda *args, **kw: built.append(1) or build(*args, **kw))
    docs.rendered.cache_clear()
    docs._schema.cache_clear()
    for _ in range(3):
        as_yaml = httpx.get(f"{live}/api/schema/", timeout=60)
        as_json = httpx.get(f"{live}/api/schema/", headers={"Accept": "application/json"}, timeout=60)
    assert len(built) == 1
    assert as_yaml.headers["Content-Type"] == "application/vnd.oai.openapi"
    schema = json.loads(as_json.text)
    assert yaml.safe_load(as_yaml.text) == schema
    assert schema["paths"]["/v1/chat/completions"]["post"]["responses"].keys() >= {"200", "413", "429"}
    assert not any("411" in op.get("responses", {}) for path in schema["paths"].values() for op in path.values())


def test_metrics_are_made_once_for_all_who_ask_within_a_second(live: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "FRESH_S", 60.0)
    first = httpx.get(f"{live}/metrics", timeout=30)
    assert first.status_code == 200
    for _ in range(3):
        assert httpx.get(f"{live}/metrics").text == first.text  # though they count requests


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_a_site_of_ipv6_is_one_client(address: str, group: str) -> None:
    assert group_of(address) == group
