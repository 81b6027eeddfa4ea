"""docker/edge.conf in a real nginx, where there is one: the limits once more, and streams that nobody holds back."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest

from lyo import embedded, env
from tests.helpers import until
from tests.lyo.test_http import SHORT_S, port, said, status

__all__ = ["port"]

CONF = env.BASE_DIR / "docker" / "edge.conf"
NGINX, OPENSSL = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"), shutil.which("openssl")
MB = 2**20

needs_nginx = pytest.mark.skipif(not (NGINX and OPENSSL), reason="needs nginx and openssl")


def test_the_edge_has_the_limits_of_the_web() -> None:
    text = CONF.read_text()
    sizes = dict(re.findall(r"location (?:= )?(\S+) \{\s+client_max_body_size (\d+)m;", text))
    assert f"client_max_body_size {env.MAX_BODY_MB}m;" in text
    assert {path: int(size) - 1 for path, size in sizes.items()} == {  # one more, for the rest of the form
        "/v1/files": env.MAX_FILE_MB,
        "/api/v1/training/evaluation-sets": env.MAX_FILE_MB,
        "/api/v1/training/adapters": env.MAX_ADAPTER_MB,
        "/admin/": env.MAX_FILE_MB,
    }
    assert re.findall(r"limit_\w+_zone (\S+)", text) == ["$client", "$server_port", "$client"]
    assert f"limit_conn address {env.CONNECTIONS_PER_ADDRESS};" in text
    assert f"limit_conn all {env.MAX_CONNECTIONS};" in text
    assert int(re.findall(r"proxy_read_timeout (\d+)s", text)[0]) > env.JOB_DEADLINE_S


def test_the_edge_logs_no_queries() -> None:
    text = CONF.read_text()
    assert re.findall(r"access_log ([^;]+);", text) == ["off"]
    assert re.findall(r"error_log ([^;]+);", text) == ["/dev/stderr crit"]


@pytest.fixture(scope="module")
def edge(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """nginx before the server of `test_http`; its port."""
    assert NGINX and OPENSSL
    home, listens = tmp_path_factory.mktemp("edge"), embedded.free_port()
    key, certificate = home / "privkey.pem", home / "fullchain.pem"
    make = [OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*make, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    version = subprocess.run([NGINX, "-v"], check=True, capture_output=True, text=True).stderr
    old = tuple(map(int, re.findall(r"nginx/(\d+)\.(\d+)\.(\d+)", version)[0])) < (1, 25, 1)
    text = CONF.read_text()
    for ours, here in {
        "/tmp/": f"{home}/",
        "web:8000": f"127.0.0.1:{port}",
        "listen 8443 ssl;": f"listen 127.0.0.1:{listens} ssl{' http2' if old else ''};",
        "/etc/nginx/tls": str(home),
        "location / {": "set_real_ip_from 127.0.0.1; location = /client { return 200 $client; }\nlocation / {",
        "/dev/stderr": str(home / "error.log"),
        **({"http2 on;": ""} if old else {}),
        **{f"{name} 20s;": f"{name} 1s;" for name in ("client_header_timeout", "client_body_timeout")},
    }.items():
        assert ours in text
        text = text.replace(ours, here)
    conf = home / "nginx.conf"
    conf.write_text(text)
    run = [NGINX, "-p", str(home), "-c", str(conf), "-e", str(home / "error.log"), "-g"]
    root = "user root; " if os.geteuid() == 0 else ""
    with subprocess.Popen([*run, f"{root}daemon off;"]) as nginx:
        try:
            until(lambda: _answers(listens))
            yield listens
        finally:
            nginx.terminate()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"https://127.0.0.1:{port}/", verify=False).status_code == 200
    except httpx.TransportError:
        return False


def connect(port: int, data: bytes) -> socket.socket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=20))
    connection.sendall(data)
    return connection


@needs_nginx
def test_a_request_passes_and_tells_where_it_came_from(edge: int) -> None:
    forged = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "http"}
    answer = httpx.post(f"https://127.0.0.1:{edge}/", verify=False, content=b"hello", headers=forged)
    assert answer.text == "5 {b'x-forwarded-for': b'6.6.6.6, 127.0.0.1', b'x-forwarded-proto': b'https'}"


@needs_nginx
def test_a_stream_is_not_held_back(edge: int) -> None:
    with httpx.stream("GET", f"https://127.0.0.1:{edge}/stream", verify=False) as response:
        times = [time.monotonic() for _ in response.iter_bytes()]
    assert times[-1] - times[0] > 5 * SHORT_S


@needs_nginx
def test_a_client_that_hangs_up_is_hung_up_on(edge: int) -> None:
    with httpx.stream("GET", f"https://127.0.0.1:{edge}/stream", verify=False) as response:
        next(response.iter_bytes())
    assert httpx.get(f"https://127.0.0.1:{edge}/", verify=False).status_code == 200


@needs_nginx
def test_bodies_and_heads_are_bounded(edge: int) -> None:
    def send(path: str, size: int, **headers: str) -> int:
        url = f"https://127.0.0.1:{edge}{path}"
        return httpx.post(url, content=b"x" * size, headers=headers, verify=False, timeout=20).status_code

    assert [send("/", 2 * MB), send("/", 2 * MB + 1), send("/v1/files", 3 * MB)] == [200, 413, 200]
    assert send("/", 0, token="x" * 70_000) == 400
    assert httpx.get(f"https://127.0.0.1:{edge}/metrics", verify=False).status_code == 404


@needs_nginx
@pytest.mark.parametrize(
    "rest", ["GET / HTTP/1.1\r\nX-A: b", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc"]
)
def test_half_a_request_is_closed(edge: int, rest: str) -> None:
    answer = said(connect(edge, rest.encode()))
    assert not answer or status(answer) in (400, 408)


def counted_as(edge: int, *addresses: str) -> set[str]:
    """By what the limits know those who come from these addresses."""
    url = f"https://127.0.0.1:{edge}/client"
    return {httpx.get(url, verify=False, headers={"X-Real-IP": address}).text for address in addresses}


@needs_nginx
def test_ipv4_is_counted_by_address_and_ipv6_by_network(edge: int) -> None:
    addresses = ("192.0.2.1", "192.0.2.2", "::ffff:192.0.2.1")
    assert counted_as(edge, *addresses) == {*addresses}
    homes = {
        "2001:db8:1:2": counted_as(
            edge, *(f"2001:db8:1:2:{host}" for host in ("3:4:5:6", "ffff:0:0:1", ":1", "0:0:7:0"))
        ),
        "2001:db8:1:3": counted_as(edge, "2001:db8:1:3::1", "2001:db8:1:3:a:b:c:d"),
        "2001:db8:0:1": counted_as(edge, "2001:db8:0:1:a:b:c:d", "2001:db8:0:1:e:f:a:b"),
        "2001:db8:0:2": counted_as(edge, "2001:db8:0:2:a:b:c:d", "2001:db8:0:2:e:f:a:b"),
        "2001:db8:0:0": counted_as(edge, "2001:db8::1", "2001:db8::a:b:c:d", "2001:db8::2:3"),
        "2001:0:0:4": counted_as(edge, "2001::4:a:b:c:d", "2001::4:1:2:3:4"),
        "0:0:0:0": counted_as(edge, "::1", "::a:b:c:d"),
    }
    assert [len(keys) for keys in homes.values()] == [1] * len(homes)
    assert len(set.union(*homes.values())) == len(homes)
