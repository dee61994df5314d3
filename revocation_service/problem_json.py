"""The form of a failure, `application/problem+json` (RFC 9457); it knows neither errors nor HTTP."""

from typing import Final

CONTENT_TYPE: Final = "application/problem+json"


def problem_members(status: int, title: str, detail: str, code: str) -> dict[str, object]:
    """The members of a problem (RFC 9457 section 3.1), and the stable code."""
    return {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
