"""Responses that handlers return."""

from aiohttp import web

from revocation_client.schema import dumps


def json_response(form: object, status: int = 200) -> web.Response:
    """Return a response in compact JSON. A `form` of bytes is already encoded."""
    body = form if isinstance(form, bytes) else dumps(form)
    return web.Response(body=body, status=status, content_type="application/json")
