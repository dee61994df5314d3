"""Whether the process lives; no key needed."""

from typing import Final

from fastapi import APIRouter

router: Final = APIRouter()


@router.get("/healthz", include_in_schema=False)
async def healthz() -> dict[str, str]:
    """It answers, so it lives; whether the revocation service does is that service's own probe."""
    return {"status": "ok"}
