"""The routes that need a login."""

from typing import Final

from fastapi import APIRouter
from pydantic import BaseModel

from main_api.current_user import CurrentUser

router: Final = APIRouter(prefix="/api/v1/users", tags=["users"])


class Profile(BaseModel):
    """A user, as shown to that user."""

    username: str


@router.get("/me")
async def me(user: CurrentUser) -> Profile:
    """Return the current user."""
    return Profile(username=user.name)
