"""Protected mode: without API keys the service serves only plainly local requests, and its errors name the remedy."""

import asyncio
import ipaddress
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest

from revocation_service.errors import SettingsError
from revocation_service.settings import load
from tests.api.serving import API_KEYS, Raw, Service, Start, request_bytes, talk, talk_to, variables
from tests.redis_processes import Process, eventually, free_port

JSON = "Content-Type: application/json"
FORM = "Content-Type: application/x-www-form-urlencoded"
ROUTES = {
    "POST /revoke": b'{"jti":"a"}',
    "POST /check": b'{"jti":"a"}',
    "POST /check/batch": b'{"checks":[{"jti":"a"}]}',
    "GET /check?jti=a": b"",
    "GET /revocations?claim=all": b"",
    "GET /healthz": b"",
    "GET /readyz": b"",
    "GET /metrics": b"",
    "GET /nowhere": b"",
    "GET /revoke": b"",
}
FOREIGN = {
    "forwarded": ["Forwarded: for=192.0.2.1"],
    "x-forwarded-for": ["X-Forwarded-For: 127.0.0.1"],
    "x-forwarded-for, empty": ["X-Forwarded-For:"],
    "x-forwarded-proto": ["X-Forwarded-Proto: https"],
    "x-forwarded-host": ["X-FORWARDED-HOST: localhost"],
    "x-forwarded-anything": ["x-forwarded-anything: 1"],
    "x-real-ip": ["X-Real-IP: 127.0.0.1"],
    "x-client-ip": ["x-client-ip: 192.0.2.1"],
    "true-client-ip": ["True-Client-IP: 192.0.2.1"],
    "via": ["Via: 1.1 proxy"],
    "another origin": ["Origin: https://evil.example"],
    "null origin": ["Origin: null"],
    "the same host, another port": ["Origin: http://localhost:3000"],
    "the same host, https": ["Origin: https://localhost"],
    "two origins": ["Origin: http://localhost", "Origin: https://evil.example"],
    "no origin's value": ["Origin:"],
    "cross-site": ["Sec-Fetch-Site: cross-site"],
    "same-site": ["Sec-Fetch-Site: same-site"],
    "cross-site, in capitals": ["Sec-Fetch-Site: CROSS-SITE"],
    "two fetch sites": ["Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"],
}


@pytest.fixture
async def service(start: Start) -> Service:
    """A service without API keys."""
    return await start()


async def refused(service: Service, raw: Raw) -> None:
    """Assert a 403 problem that names the setting to change, with no CORS header, and that nothing was stored."""
    assert raw.statuses == [403]
    problem = json.loads(raw.data.partition(b"\r\n\r\n")[2])
    assert problem["code"] == "protected_mode"
    assert "REVOCATION_API_KEYS" in problem["detail"]
    assert raw.headers["Content-Type"] == "application/problem+json"
    assert raw.headers["Cache-Control"] == "no-store"
    assert not [name for name in raw.headers if name.lower().startswith("access-control")]
    assert await service.stored_keys() == set()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "localhost:8080", "LOCALHOST", "127.0.0.1:65535"])
async def test_a_plain_local_request_is_served(service: Service, host: str) -> None:
    """A request from the same machine, as curl sends it, is served on every route."""
    for line, body in list(ROUTES.items())[:8]:
        raw = await talk(
            service, request_bytes(f"{line} HTTP/1.1", "User-Agent: curl/8", "Accept: */*", JSON, body=body, host=host)
        )
        assert raw.statuses in ([200], [404] if "revocations" in line else [200]), line


async def test_without_keys_nobody_is_named(service: Service) -> None:
    """Without API keys, a local caller may revoke `all`. Its key is ignored, and the record has no `revoked_by`."""
    await service.revoke({"all": True}, headers={"Authorization": "Bearer whatever"})
    record = (await service.get("/revocations", {"claim": "all"})).json
    assert "revoked_by" not in record


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
async def test_a_request_that_is_not_plainly_local_is_refused(service: Service, headers: list[str]) -> None:
    """A request from a proxy or a web page is 403 on every route, also on the probes and on unknown paths."""
    for line, body in ROUTES.items():
        await refused(
            service, await talk(service, request_bytes(f"{line} HTTP/1.1", JSON, *headers, body=body, key=None))
        )


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "localhost.",
        "192.0.2.1",
        "0.0.0.0",
        "[::]",
        "localhost:80:80",
        "localhost@evil.example",
        "localhost, evil.example",
        "127.1",
        "2130706433",
        "",
    ],
)
async def test_a_host_that_is_not_ours_is_refused(service: Service, host: str) -> None:
    """A request with a foreign Host is refused on every route, because DNS rebinding produces such requests."""
    for line, body in ROUTES.items():
        await refused(
            service, await talk(service, request_bytes(f"{line} HTTP/1.1", JSON, body=body, host=host, key=None))
        )


async def test_a_missing_host_is_refused(service: Service) -> None:
    """A request without Host is 403 over HTTP/1.0, which allows it, and 400 over HTTP/1.1, which does not."""
    await refused(service, await talk(service, b"GET /check?jti=a HTTP/1.0\r\n\r\n"))
    assert (await talk(service, b"GET /check?jti=a HTTP/1.1\r\n\r\n")).statuses == [400]


async def test_http_1_0_is_refused(service: Service) -> None:
    """HTTP/1.0 is refused on every route, because nginx before 1.29.7 speaks it to its upstream by default."""
    for line, body in ROUTES.items():
        await refused(service, await talk(service, request_bytes(f"{line} HTTP/1.0", JSON, body=body, key=None)))


async def test_what_a_bare_nginx_passes_on_is_refused(service: Service) -> None:
    """The exact bytes that nginx 1.22 sends with a bare `proxy_pass` are refused, though no header names a proxy."""
    request = (
        b"POST /revoke HTTP/1.0\r\nHost: 127.0.0.1:%d\r\nConnection: close\r\nContent-Length: 13\r\n"
        b"User-Agent: curl/7.88.1\r\nAccept: */*\r\nContent-Type: application/json\r\n\r\n"
        b'{"all": true}'
    )
    await refused(service, await talk(service, request % service.port))


NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed; its request is replayed in the test above")
@pytest.mark.parametrize(
    "settings",
    ["proxy_http_version 1.0;", "proxy_http_version 1.1; proxy_set_header X-Real-IP $remote_addr;"],
    ids=["http-1.0", "x-real-ip"],
)
async def test_a_request_through_a_real_nginx_is_refused(
    service: Service, tmp_path: pathlib.Path, settings: str
) -> None:
    """A request through nginx is refused, over HTTP/1.0 and over HTTP/1.1 with X-Real-IP as its only proxy header."""
    port = free_port()
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {tmp_path}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port}; "
        f"location / {{ proxy_pass http://127.0.0.1:{service.port}; {settings} }} }} }}\n"
    )
    assert NGINX is not None
    nginx = await asyncio.create_subprocess_exec(NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"))
    try:

        async def through_nginx() -> Raw:
            request = request_bytes("POST /revoke HTTP/1.1", JSON, body=b'{"all": true}', host="example.org", key=None)
            return await talk_to("127.0.0.1", port, request)

        await refused(service, await eventually(through_nginx, "nginx"))
    finally:
        nginx.terminate()
        await nginx.wait()


async def test_two_hosts_are_refused(service: Service) -> None:
    """A request with two Host fields is 400, whichever comes first."""
    for hosts in (("localhost", "evil.example"), ("evil.example", "localhost")):
        lines = "".join(f"Host: {host}\r\n" for host in hosts)
        raw = await talk(service, f"GET /check?jti=a HTTP/1.1\r\n{lines}\r\n".encode())
        assert raw.statuses == [400]


@pytest.mark.parametrize("target", ["http://evil.example/healthz", "http://localhost/healthz", "ftp://x/healthz"])
async def test_a_target_for_proxies_is_refused(service: Service, target: str) -> None:
    """A target in absolute form, which only proxies are sent, is refused (RFC 9112 section 3.2.2)."""
    await refused(service, await talk(service, request_bytes(f"GET {target} HTTP/1.1", key=None)))


@pytest.mark.parametrize("content_type", [FORM, "Content-Type: text/plain", "Content-Type: text/plain; charset=UTF-8"])
async def test_a_web_page_cannot_revoke(service: Service, content_type: str) -> None:
    """A form that a foreign web page posts, which needs no CORS preflight, revokes nothing."""
    browser = [
        "User-Agent: Mozilla/5.0",
        "Origin: https://evil.example",
        "Referer: https://evil.example/",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Mode: navigate",
        "Sec-Fetch-Dest: document",
        content_type,
    ]
    for body in (b"all=true", b"sub=alice&reason=x", b'{"all":true,"reason":"="}'):
        raw = await talk(
            service,
            request_bytes("POST /revoke HTTP/1.1", *browser, body=body, host=f"127.0.0.1:{service.port}", key=None),
        )
        await refused(service, raw)


async def test_the_service_s_own_pages_may_ask(service: Service) -> None:
    """A same-origin request is served, and so is one from the address bar of a browser."""
    own = f"127.0.0.1:{service.port}"
    for headers in (
        [f"Origin: http://{own}", "Sec-Fetch-Site: same-origin"],
        ["Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"],
    ):
        raw = await talk(service, request_bytes("GET /check?jti=a HTTP/1.1", *headers, host=own, key=None))
        assert raw.statuses == [200]


async def test_no_preflight_is_granted(service: Service) -> None:
    """OPTIONS from a foreign page is refused and carries no CORS header."""
    asking = ["Origin: https://evil.example", "Access-Control-Request-Method: POST", "Sec-Fetch-Site: cross-site"]
    await refused(service, await talk(service, request_bytes("OPTIONS /revoke HTTP/1.1", *asking, key=None)))


async def test_ipv6_loopback_is_local(start: Start) -> None:
    """Over [::1] a local request is served, and a proxied one is refused."""
    service = await start(host="::1")
    raw = await talk(service, request_bytes("GET /check?jti=a HTTP/1.1", host=f"[::1]:{service.port}", key=None))
    assert raw.statuses == [200]
    await refused(service, await talk(service, request_bytes("GET /check?jti=a HTTP/1.1", "Via: 1.1 x", key=None)))


def own_address() -> str | None:
    """Return an address of this machine that is not loopback, or None if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only chooses an address
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if ipaddress.ip_address(address).is_loopback else address


async def test_both_ends_of_the_socket_are_judged(start: Start) -> None:
    """A service bound to all addresses refuses a request unless both ends are loopback, whatever its Host is."""
    own = own_address()
    if own is None:
        pytest.skip("this machine has no address but loopback")
    service = await start(host="0.0.0.0")
    for source, host in ((own, own), ("127.0.0.1", own), (own, "127.0.0.1")):
        for name in ("localhost", "127.0.0.1", f"{own}:{service.port}"):
            for line, body in ROUTES.items():
                request = request_bytes(f"{line} HTTP/1.1", JSON, body=body, host=name, key=None)
                await refused(service, await talk_to(host, service.port, request, source=source))
    request = request_bytes("GET /check?jti=a HTTP/1.1", key=None)
    assert (await talk_to("127.0.0.1", service.port, request, source="127.0.0.1")).statuses == [200]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "127.0.0.1.evil.example", "1"])
def test_another_address_is_refused_at_the_start(redis: Process, host: str) -> None:
    """Without API keys, a REVOCATION_HOST other than loopback is an error that names REVOCATION_API_KEYS."""
    with pytest.raises(SettingsError, match=r"REVOCATION_HOST.*REVOCATION_API_KEYS"):
        load(variables(redis, HOST=host))
    load(variables(redis, HOST=host, API_KEYS=API_KEYS))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "::ffff:127.0.0.1"])
def test_loopback_may_be_bound_without_keys(redis: Process, host: str) -> None:
    """Without API keys, every loopback address is accepted as REVOCATION_HOST."""
    assert load(variables(redis, HOST=host)).settings.protected


@pytest.mark.parametrize("keys", ["", " ", ",", "\n\n", "# none yet\n"])
def test_set_but_empty_keys_are_an_error(redis: Process, keys: str) -> None:
    """REVOCATION_API_KEYS without any key in it is an error; it does not turn on protected mode."""
    with pytest.raises(SettingsError, match="REVOCATION_API_KEYS"):
        load(variables(redis, API_KEYS=keys))


def test_the_command_refuses_before_it_listens(redis: Process) -> None:
    """Without API keys, `serve` on 0.0.0.0 exits with status 1 and one line on stderr."""
    environment = {**os.environ, **variables(redis, HOST="0.0.0.0", PORT="0")}
    command = [sys.executable, "-m", "revocation_service", "serve"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "REVOCATION_HOST" in done.stderr
    assert "REVOCATION_API_KEYS" in done.stderr


async def test_with_keys_the_keys_decide(start: Start) -> None:
    """With API keys, proxied and cross-site requests are served, and one without a key is 401."""
    service = await start(API_KEYS=API_KEYS)
    foreign = ["X-Forwarded-For: 192.0.2.1", "Via: 1.1 x", "Origin: https://app.example", "Sec-Fetch-Site: cross-site"]
    request = request_bytes("GET /check?jti=a HTTP/1.1", *foreign, host="revocation.example")
    assert (await talk(service, request)).statuses == [200]
    request = request_bytes("GET /check?jti=a HTTP/1.1", *foreign, host="revocation.example", key=None)
    assert (await talk(service, request)).statuses == [401]
