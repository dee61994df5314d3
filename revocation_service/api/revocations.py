"""`GET /revocations`."""

from aiohttp import web

from revocation_client.schema import SchemaError, check_value, parse_claim, revocation_form
from revocation_service.api.auth import authorize
from revocation_service.api.bodies import query_members
from revocation_service.api.dependencies import REVOCATIONS
from revocation_service.http.responses import json_response


async def look_up(request: web.Request) -> web.Response:
    """Return the live revocation of one claim and value; 404 if there is none."""
    authorize(request, "check")
    members = query_members(request)
    if not {"claim"} <= members.keys() <= {"claim", "value"}:
        raise SchemaError("query", "must have claim and value (claim alone for all)")
    claim = parse_claim(members["claim"])
    if (claim == "all") == ("value" in members):
        raise SchemaError("value", "is required, except for the claim all, which has none")
    value = "" if claim == "all" else check_value("value", members["value"])
    return json_response(revocation_form(await request.app[REVOCATIONS].look_up(claim, value)))
