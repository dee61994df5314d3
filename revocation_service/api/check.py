"""`GET /check`, `POST /check` and `POST /check/batch`."""

from functools import lru_cache
from math import isfinite

from aiohttp import hdrs, web

from revocation_client.schema import Question, SchemaError, dumps, parse_batch, parse_question, revocation_form
from revocation_service.api.auth import authorize
from revocation_service.api.bodies import BATCH_BODY_MAX_BYTES, query_members, read_members
from revocation_service.api.dependencies import REVOCATIONS
from revocation_service.errors import InvalidRequest, ServiceError
from revocation_service.http.problems import problem_members
from revocation_service.http.responses import json_response
from revocation_service.revocations import Verdict


async def check(request: web.Request) -> web.Response:
    """Answer whether a token is revoked. With POST, the token does not end up in the logs of proxies."""
    authorize(request, "check")
    members = query_members(request) if request.method == hdrs.METH_GET else await read_members(request)
    verdict = await request.app[REVOCATIONS].check(parse_question(members))
    usual = verdict.revocation is None and verdict.stale_seconds is None
    return json_response(_not_revoked(verdict) if usual else _form(verdict))


@lru_cache(maxsize=256)
def _not_revoked(verdict: Verdict) -> bytes:
    """Return the JSON of "not revoked". It is cached: its variants are few, and encoding takes a tenth of a check."""
    return dumps(_form(verdict))


async def check_batch(request: web.Request) -> web.Response:
    """Answer up to 1,000 questions in order; an error in one affects no other."""
    authorize(request, "check")
    elements = parse_batch(await read_members(request, BATCH_BODY_MAX_BYTES))
    outcomes = await request.app[REVOCATIONS].check_many([_question(element) for element in elements])
    return json_response(
        {"results": [_form(one) if isinstance(one, Verdict) else {"error": problem_members(one)} for one in outcomes]}
    )


def _question(element: object) -> Question | ServiceError:
    try:
        return parse_question(element)
    except SchemaError as error:
        return InvalidRequest(str(error))


def _form(verdict: Verdict) -> dict[str, object]:
    """Return the JSON of a verdict."""
    form: dict[str, object] = {"revoked": verdict.revocation is not None}
    if verdict.revocation is not None:
        form["revocation"] = revocation_form(verdict.revocation)
    if verdict.iat_unusable:
        form["iat_unusable"] = True
    form["considered"] = verdict.considered
    if verdict.expired is not None:
        form["expired"] = verdict.expired
    form["verified"] = verdict.verified
    form["source"] = "redis" if verdict.stale_seconds is None else "mirror"
    if verdict.stale_seconds is not None:
        form["stale_seconds"] = round(verdict.stale_seconds, 3) if isfinite(verdict.stale_seconds) else None
    return form
