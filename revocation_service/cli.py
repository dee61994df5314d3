"""The command line: parse the arguments, call, exit."""

import argparse
import secrets
import sys
from collections.abc import Callable, Coroutine, Sequence
from hashlib import sha256
from typing import Any

import structlog
import uvloop

from revocation_service import __version__
from revocation_service.api.app import serve
from revocation_service.api_keys import SCOPES, parse_key_name, parse_scopes
from revocation_service.environment import Loaded
from revocation_service.errors import ServiceError
from revocation_service.gateway.app import serve as serve_gateway
from revocation_service.gateway.settings import GatewaySettings, load as load_gateway
from revocation_service.settings import Settings, load
from revocation_service.signing_keys import SigningKeys
from revocation_service.store import embedded
from revocation_service.store.topology import topology
from revocation_service.telemetry import configure_logging

_DESCRIPTION = """Revoke JSON Web Tokens: a denylist in Redis behind /revoke and /check.

Settings are environment variables: REVOCATION_… for the service, GATEWAY_… for the gateway. `check-config` and
`check-config gateway` print all of them, with the values in force."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, or 1 on failure. argparse exits with 2 on a usage error."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.command(parsed)
    except ServiceError as error:
        print(f"revocation-service: {error.detail}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="revocation-service", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        added.set_defaults(command=command)
        return added

    add("serve", lambda _: _run(load(), serve), "serve /revoke and /check until SIGTERM")
    add("gateway", lambda _: _run(load_gateway(), serve_gateway), "throttle logins to the main API until SIGTERM")
    check = add("check-config", _check_config, "print the settings in force, secrets masked, and check them")
    check.add_argument("part", nargs="?", choices=("service", "gateway"), default="service", help="default: service")
    new_key = add("new-key", _new_key, "print a new API key, and its entry for REVOCATION_API_KEYS")
    new_key.add_argument("name", metavar="NAME", help="name of the caller, as it appears in revoked_by")
    new_key.add_argument("scopes", metavar="SCOPES", help=f"{', '.join(SCOPES)}, or several joined by +")
    return parser


def _run(loaded: Loaded[Any], serve: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    configure_logging(loaded.settings.log_level, loaded.settings.log_format)
    for name in loaded.unknown:
        structlog.get_logger().warning("unknown_setting", name=name)
    uvloop.run(serve(loaded.settings))


def _check_config(parsed: argparse.Namespace) -> None:
    """Print the settings in force and check them as a start does, but connect to nothing. Raises SettingsError."""
    loaded: Loaded[Any] = load_gateway() if parsed.part == "gateway" else load()
    print(*loaded.shown, sep="\n")
    for name in loaded.unknown:
        print(f"revocation-service: {name} is set, and no setting has that name", file=sys.stderr)
    settings: Settings | GatewaySettings = loaded.settings
    store = settings.store if isinstance(settings, Settings) else settings.throttle.store
    if store and store.embedded_directory:
        embedded.check(store.embedded_directory, store.server_bin)
    elif store:
        topology(store)
    if isinstance(settings, Settings):
        SigningKeys(settings.signing)
        print(f"# open doors: {', '.join(settings.open_doors) or 'none'}")


def _new_key(parsed: argparse.Namespace) -> None:
    name = parse_key_name(parsed.name, "NAME")
    scopes = "+".join(sorted(parse_scopes(parsed.scopes, "SCOPES")))
    key = secrets.token_urlsafe(32)
    digest = sha256(key.encode()).hexdigest()
    print(f"key, for the caller:             {key}")
    print(f"entry for REVOCATION_API_KEYS:   {name}=sha256:{digest}:{scopes}")
