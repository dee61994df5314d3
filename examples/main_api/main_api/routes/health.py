"""Liveness, without authentication."""

from typing import Final

from fastapi import APIRouter

router: Final = APIRouter()


@router.get("/healthz", include_in_schema=False)
async def healthz() -> dict[str, str]:
    """Report that this process is alive. The revocation service has its own probe."""
    return {"status": "ok"}
