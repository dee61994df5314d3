"""`GET|POST /check`, `POST /check/batch` and `GET /revocations`."""

from functools import lru_cache
from math import isfinite

from aiohttp import web

from revocation_client.wire import (
    Question,
    WireError,
    check_value,
    dumps,
    parse_batch,
    parse_claim,
    parse_question,
    revocation_to_json,
)
from revocation_service.errors import InvalidRequest, ServiceError
from revocation_service.revocations import Verdict
from revocation_service.web.answers import Answer, json_answer
from revocation_service.web.bodies import BATCH_BODY_MAX_BYTES, query_members, read_members
from revocation_service.web.problems import problem_form
from revocation_service.web.state import AUTHORIZE, REVOCATIONS


async def check_query(request: web.Request) -> Answer:
    """Whether the token that the query names, or describes by claims, is revoked."""
    app = request.app
    app[AUTHORIZE](request, "check")
    return _answer(await app[REVOCATIONS].check(parse_question(query_members(request))))


async def check_body(request: web.Request) -> Answer:
    """The same question in a body, which no proxy logs."""
    request.app[AUTHORIZE](request, "check")
    question = parse_question(await read_members(request))
    return _answer(await request.app[REVOCATIONS].check(question))


def _answer(verdict: Verdict) -> Answer:
    return Answer(_encoded(verdict))


def _encoded(verdict: Verdict) -> bytes:
    usual = verdict.revocation is None and verdict.stale_seconds is None
    return _not_revoked(verdict) if usual else dumps(_form(verdict))


@lru_cache(maxsize=256)
def _not_revoked(verdict: Verdict) -> bytes:
    """The usual answer; there are few of it, because it says nothing of the token but which claims it has."""
    return dumps(_form(verdict))


async def check_batch(request: web.Request) -> Answer:
    """Up to 1,000 questions at once, answered in order; one bad element spoils no other."""
    request.app[AUTHORIZE](request, "check")
    questions = _questions(parse_batch(await read_members(request, BATCH_BODY_MAX_BYTES)))
    results = _results(await request.app[REVOCATIONS].check_many(questions))
    return Answer(b'{"results":[%b]}' % b",".join(results))


def _questions(elements: list[object]) -> list[Question | ServiceError]:
    questions: list[Question | ServiceError] = []
    for element in elements:
        try:
            questions.append(parse_question(element))
        except WireError as error:
            questions.append(InvalidRequest(str(error)))
    return questions


def _results(verdicts: list[Verdict | ServiceError]) -> list[bytes]:
    """Each written out; the usual verdict is one object, which mostly comes many times in a row."""
    results: list[bytes] = []
    before, text = None, b""
    for verdict in verdicts:
        if verdict is not before:
            before, text = verdict, _encoded(verdict) if isinstance(verdict, Verdict) else _error(verdict)
        results.append(text)
    return results


def _error(error: ServiceError) -> bytes:
    return dumps({"error": problem_form(error)})


def _form(verdict: Verdict) -> dict[str, object]:
    form: dict[str, object] = {"revoked": verdict.revocation is not None}
    if verdict.revocation is not None:
        form["revocation"] = revocation_to_json(verdict.revocation)
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


async def look_up(request: web.Request) -> Answer:
    """The live revocation of one claim and value."""
    request.app[AUTHORIZE](request, "check")
    members = query_members(request)
    if not {"claim"} <= members.keys() <= {"claim", "value"}:
        raise WireError("query", "must have claim and value (claim alone for all)")
    claim = parse_claim(members["claim"])
    if (claim == "all") == ("value" in members):
        raise WireError("value", "must be there for every claim but all")
    value = "" if claim == "all" else check_value("value", members["value"])
    found = await request.app[REVOCATIONS].look_up(claim, value)
    return json_answer(revocation_to_json(found))
