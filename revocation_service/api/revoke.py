"""`POST /revoke`."""

from aiohttp import web

from revocation_client.claims import CLAIMS
from revocation_client.schema import number, parse_revoke
from revocation_service.api.auth import authorize
from revocation_service.api.bodies import read_members
from revocation_service.api.dependencies import BROADCASTER, REVOCATIONS
from revocation_service.errors import ShuttingDown
from revocation_service.http.responses import json_response
from revocation_service.revocations import Revoked


async def revoke(request: web.Request) -> web.Response:
    """Revoke what the body names. The response is 200 only if the write is safe and the feed has not ended."""
    caller = authorize(request, "revoke")
    asked = parse_revoke(await read_members(request))
    if asked.claim != "token":
        authorize(request, CLAIMS[asked.claim].scope)
    done = await request.app[REVOCATIONS].revoke(asked, caller)
    assert_acknowledging(request)
    return json_response(_form(done, asked.reason))


def assert_acknowledging(request: web.Request) -> None:
    """Raise ShuttingDown once the feed has ended: other processes might not learn of the revocation."""
    if request.app[BROADCASTER].ended:
        raise ShuttingDown("this instance is shutting down and its feed has ended; send the revocation again")


def _form(done: Revoked, reason: str | None) -> dict[str, object]:
    record = done.record
    form: dict[str, object] = {
        "result": done.result,
        "claim": done.claim,
        "value": done.value,
        "revoked_at": number(record.revoked_at) if record else None,
        "expires_at": number(done.expires_at),
        "reason": record.reason if record else reason,
        "verified": done.verified,
    }
    if record and record.issued_before is not None:
        form["issued_before"] = number(record.issued_before)
    return form
