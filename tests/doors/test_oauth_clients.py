"""Tests of third-party OAuth clients and resource servers, configured as in docs/oauth.md, against the service."""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.api.serving import Service
from tests.docs.blocks import block
from tests.doors.world import ODD_KEY, OWN_KEY, token
from tests.redis_processes import TlsFront, eventually, free_port, tls_front

NPM_SECONDS = 120
APACHE = "/usr/sbin/apache2"
APACHE_MODULES = Path("/usr/lib/apache2/modules")


def url(service: Service, path: str) -> str:
    """Return the URL of an OAuth endpoint."""
    return f"{str(service.url).rstrip('/')}/oauth2/{path}"


async def is_active(service: Service, raw: str) -> bool:
    """Return whether introspection says that a token is active."""
    active: bool = (await service.form("/oauth2/introspect", {"token": raw})).json["active"]
    return active


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_authlib(service: Service, method: str) -> None:
    """Authlib, which sends Basic credentials raw, can introspect a token and revoke the client's own, but no other."""
    session = pytest.importorskip("authlib.integrations.requests_client").OAuth2Session
    raw = token(client_id="mobile", jti="a")
    reader = session("odd", ODD_KEY, revocation_endpoint_auth_method=method)
    owner = session("mobile", OWN_KEY, revocation_endpoint_auth_method=method)
    said = await asyncio.to_thread(reader.introspect_token, url(service, "introspect"), token=raw)
    assert said.json()["client_id"] == "mobile"
    done = await asyncio.to_thread(
        owner.revoke_token, url(service, "revoke"), token=raw, token_type_hint="access_token"
    )
    assert done.status_code == 200
    assert not await is_active(service, raw)
    others = await asyncio.to_thread(owner.revoke_token, url(service, "revoke"), token=token(client_id="web"))
    assert (others.status_code, others.json()["error"]) == (400, "invalid_grant")


async def test_oauthlib_with_requests(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revocation request that oauthlib prepares and requests-oauthlib sends revokes the token."""
    client_of = pytest.importorskip("oauthlib.oauth2").WebApplicationClient
    session_of = pytest.importorskip("requests_oauthlib").OAuth2Session
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    raw = token(client_id="mobile", jti="a")
    address, headers, body = client_of("mobile").prepare_token_revocation_request(url(service, "revoke"), raw)

    def send() -> Any:
        with session_of(client=client_of("mobile")) as session:
            options = {"auth": ("mobile", OWN_KEY), "withhold_token": True, "timeout": 10}
            return session.post(address, headers=headers, data=body, **options)

    assert (await asyncio.to_thread(send)).status_code == 200
    assert not await is_active(service, raw)


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_fastmcp(service: Service, method: Any) -> None:
    """FastMCP accepts a token with its client and scopes. It refuses a revoked one, and one without the scope."""
    providers = pytest.importorskip("fastmcp.server.auth.providers.introspection")
    verifier = providers.IntrospectionTokenVerifier(
        introspection_url=url(service, "introspect"), client_id="odd", client_secret=ODD_KEY,
        client_auth_method=method, required_scopes=["read"],
    )  # fmt: skip
    raw = token(client_id="mobile", jti="a", scope=["read", "write"])
    taken = await verifier.verify_token(raw)
    assert taken is not None
    assert (taken.client_id, taken.scopes) == ("mobile", ["read", "write"])
    await service.revoke({"token": raw})
    assert await verifier.verify_token(raw) is None
    assert await verifier.verify_token(token(scope="write")) is None


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the npm packages oauth4webapi and openid-client are installed."""
    directory = tmp_path_factory.mktemp("node")
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node and npm here")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "oauth4webapi@3", "openid-client@6"]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=NPM_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm does not answer here")
    if done.returncode:
        pytest.skip("npm cannot install oauth4webapi and openid-client here")
    shutil.copy(Path(__file__).parent / "node_clients.mjs", directory)
    return directory


async def test_openid_client_and_oauth4webapi(service: Service, node_modules: Path) -> None:
    """Both clients work with a key that has `+`, `/`, `=` and `~`, which they form-encode in Basic credentials."""
    command = ["node", "node_clients.mjs", str(service.url).rstrip("/"), "odd", ODD_KEY, token(jti="a")]
    options: dict[str, Any] = {"cwd": node_modules, "capture_output": True, "text": True, "timeout": 60, "check": False}
    done = await asyncio.to_thread(lambda: subprocess.run(command, **options))
    assert done.returncode == 0, done.stderr
    said = {each["name"]: each["active"] for each in map(json.loads, done.stdout.splitlines())}
    assert said == {"oauth4webapi basic": True, "oauth4webapi post": True, "openid-client": True, "revoked": False}


@pytest.mark.skipif(
    not (APACHE_MODULES / "mod_auth_openidc.so").exists(), reason="no Debian libapache2-mod-auth-openidc here"
)
async def test_apache_with_mod_auth_openidc(service: Service) -> None:
    """Apache accepts a token, and refuses it soon after its revocation. It caches introspection for a second."""
    raw = token(jti="a")
    plain: Any = SimpleNamespace(port=service.port, password=None)
    async with tls_front(plain) as front:
        with tempfile.TemporaryDirectory() as directory, apache(Path(directory), front) as address:
            await _taken_until_revoked(service, address, raw)


async def _taken_until_revoked(service: Service, address: str, raw: str) -> None:
    async def status_is(given: str, expected: int) -> bool:
        async with service.session.get(address, headers={"Authorization": f"Bearer {given}"}) as response:
            return response.status == expected

    await eventually(lambda: status_is(raw, 200), "Apache to take the token")
    assert await status_is("x" + raw, 401)
    await service.revoke({"token": raw})
    await eventually(lambda: status_is(raw, 401), "Apache to refuse the token")
    assert await status_is(token(jti="b"), 200)


@contextmanager
def apache(directory: Path, front: TlsFront) -> Iterator[str]:
    """Run Apache with the configuration of docs/oauth.md, and yield its URL."""
    text = block("docs/oauth.md", "apache")
    changes = {"your-api": "odd", "the-clients-key": ODD_KEY, "revocation.example": f"127.0.0.1:{front.port}"}
    for documented, actual in changes.items():
        text = text.replace(documented, actual)
    port = free_port()
    (directory / "index.html").write_text("in")
    shutil.copy(front.certificates.ca, directory / "ca.pem")
    modules = ("mpm_event", "authn_core", "authz_core", "authz_user", "dir", "auth_openidc")
    lines = [f"LoadModule {name}_module {APACHE_MODULES}/mod_{name}.so" for name in modules]
    lines += [f"Listen 127.0.0.1:{port}", f"PidFile {directory}/pid", f"ErrorLog {directory}/error.log", "ServerName a"]
    lines += [f"DocumentRoot {directory}", f"Mutex file:{directory}", "DirectoryIndex index.html"]
    lines += ["OIDCCryptoPassphrase x", f"OIDCCABundlePath {directory}/ca.pem", "User www-data", "Group www-data"]
    (directory / "apache.conf").write_text("\n".join([*lines, text]))
    directory.chmod(0o755)  # Apache's workers run as another user, which could not enter pytest's directories
    command = [APACHE, "-X", "-d", str(directory), "-f", f"{directory}/apache.conf"]
    with (directory / "output").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]})
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(10)
