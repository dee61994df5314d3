"""The command line: parse, call, exit."""

import argparse
import asyncio
import secrets
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256

import structlog

from revocation_service import __version__
from revocation_service.api_keys import parse_key_name, parse_scopes
from revocation_service.dry_run import dry_run, dry_run_gateway
from revocation_service.environment import Loaded, S, describe
from revocation_service.errors import ServiceError
from revocation_service.gateway.settings import load as load_gateway
from revocation_service.settings import load, load_watch
from revocation_service.telemetry import configure_logging
from revocation_service.watch import watch_until_stopped
from revocation_service.web.serve import serve

_DESCRIPTION = """Takes JSON Web Tokens back: a denylist in Redis behind /revoke and /check.

Settings are environment variables: REVOCATION_… of the service, GATEWAY_… of the gateway. `check-config` and
`check-config gateway` show them all, and what is in force."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 where it failed, 2 where it was called wrongly."""
    parsed = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = parsed.command
    try:
        command(parsed)
    except ServiceError as error:
        print(f"revocation-service: {error.detail}", file=sys.stderr)  # noqa: T201 - a command answers its user
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="revocation-service", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(commands, "serve", _serve, "serve /revoke and /check until SIGTERM")
    _add(commands, "watch", _watch, "print the feed of the service at REVOCATION_URL, a line an event, until Ctrl-C")
    _add(commands, "gateway", _gateway, "throttle logins before the main API at GATEWAY_UPSTREAM_URL until SIGTERM")
    check = _add(commands, "check-config", _check_config, "print the settings in force, secrets masked")
    check.add_argument(
        "part",
        metavar="PART",
        nargs="?",
        choices=("service", "gateway"),
        default="service",
        help="whose settings: service (default) or gateway",
    )
    new_key = _add(commands, "new-key", _new_key, "print a new API key, and its entry for REVOCATION_API_KEYS")
    new_key.add_argument("name", metavar="NAME", help="who will call with it; stands in revoked_by")
    new_key.add_argument("scopes", metavar="SCOPES", help="check, revoke, admin, or several joined by +")
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Callable[[argparse.Namespace], None],
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(command=command)
    return parser


def _serve(_parsed: argparse.Namespace) -> None:
    loaded = load()
    configure_logging(loaded.settings.log_level, loaded.settings.log_format)
    for name in loaded.unknown:
        structlog.get_logger().warning("unknown_setting", name=name)
    with _runner() as running:
        running.run(serve(loaded.settings))


def _watch(_parsed: argparse.Namespace) -> None:
    asyncio.run(watch_until_stopped(load_watch(), sys.stdout))


def _gateway(_parsed: argparse.Namespace) -> None:
    from revocation_service.gateway.serve import serve as serve_gateway  # the service needs none of its libraries

    loaded = load_gateway()
    configure_logging(loaded.settings.log_level, loaded.settings.log_format)
    for name in loaded.unknown:
        structlog.get_logger().warning("unknown_setting", name=name)
    with _runner() as running:
        running.run(serve_gateway(loaded.settings))


def _runner() -> asyncio.Runner:
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def _check_config(parsed: argparse.Namespace) -> None:
    if parsed.part == "gateway":
        loaded_gateway = load_gateway()
        _show(loaded_gateway)
        dry_run_gateway(loaded_gateway.settings)
        return
    loaded = load()
    _show(loaded)
    dry_run(loaded.settings)


def _show(loaded: Loaded[S]) -> None:
    print(*describe(loaded), sep="\n")  # noqa: T201
    for name in loaded.unknown:
        print(f"revocation-service: {name} is set, and no setting has that name", file=sys.stderr)  # noqa: T201


def _new_key(parsed: argparse.Namespace) -> None:
    name = parse_key_name(parsed.name, "NAME")
    scopes = "+".join(sorted(parse_scopes(parsed.scopes, "SCOPES")))
    key = secrets.token_urlsafe(32)
    digest = sha256(key.encode()).hexdigest()
    print(  # noqa: T201
        f"key, for the caller:             {key}\nentry for REVOCATION_API_KEYS:   {name}=sha256:{digest}:{scopes}"
    )
