"""Liveness. No token is needed."""

from typing import Final

from fastapi import APIRouter

router: Final = APIRouter()


@router.get("/healthz", include_in_schema=False)
async def healthz() -> dict[str, str]:
    """Answer that the process is alive. The revocation service has its own probe."""
    return {"status": "ok"}
