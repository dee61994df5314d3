"""Checks of the settings without serving: keys, addresses, options, and the server of the embedded Redis."""

from revocation_service.gateway.settings import GatewaySettings
from revocation_service.keys import SigningKeys
from revocation_service.settings import Settings
from revocation_service.store.data_directory import check_owner, check_writer
from revocation_service.store.server_binary import find_server
from revocation_service.store.topology import topology


def dry_run(settings: Settings) -> None:
    """Check the service's settings without connecting to anything. Raises SettingsError where a start would fail."""
    SigningKeys(settings.signing)
    directory = settings.store.embedded_directory
    if directory is None:
        topology(settings.store)
    else:
        check_owner(directory)
        check_writer(directory, find_server(settings.store.server_bin))


def dry_run_gateway(settings: GatewaySettings) -> None:
    """Check the gateway's settings without connecting to anything. Raises SettingsError where a start would fail."""
    if settings.throttle.store is not None:
        topology(settings.throttle.store)
