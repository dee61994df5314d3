"""What can be judged of the settings without serving: keys, addresses and options, and the embedded Redis' server."""

from revocation_service.gateway.settings import GatewaySettings
from revocation_service.keys import SigningKeys
from revocation_service.settings import Settings
from revocation_service.store.connect import connect
from revocation_service.store.server_binary import find_server


def dry_run(settings: Settings) -> None:
    """Make what a start would make, and throw it away; nothing is connected to.

    Raises SettingsError where a start would fail.
    """
    SigningKeys(settings.signing)
    if settings.store.embedded_directory is None:
        connect(settings.store)
    else:
        find_server(settings.store.server_bin)


def dry_run_gateway(settings: GatewaySettings) -> None:
    """The same for a gateway.

    Raises SettingsError where a start would fail.
    """
    if settings.throttle.store is not None:
        connect(settings.throttle.store)
