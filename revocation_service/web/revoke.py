"""`POST /revoke`."""

from typing import Final

from aiohttp import web

from revocation_client.model import ClaimName
from revocation_client.wire import RevokeToken, number, parse_revoke
from revocation_service.errors import ShuttingDown
from revocation_service.revocations import Revoked
from revocation_service.web.answers import Answer, json_answer
from revocation_service.web.bodies import read_members
from revocation_service.web.state import AUTHORIZE, BROADCASTER, REVOCATIONS

_WIDE: Final[frozenset[ClaimName]] = frozenset({"client_id", "all"})


async def revoke(request: web.Request) -> Answer:
    """Revoke what the body names; answered 200 only after the write is safe, and never after the feed has ended."""
    authorize = request.app[AUTHORIZE]
    caller = authorize(request, "revoke")
    asked = parse_revoke(await read_members(request))
    if not isinstance(asked, RevokeToken) and asked.claim in _WIDE:
        authorize(request, "admin")
    done = await request.app[REVOCATIONS].revoke(asked, caller)
    if request.app[BROADCASTER].ended:
        raise ShuttingDown("this instance is shutting down and its feed has ended; send the revocation again")
    return json_answer(_form(done, asked.reason))


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
