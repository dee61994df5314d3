"""The route that requires a login."""

from typing import Final

from fastapi import APIRouter
from pydantic import BaseModel

from main_api.current_user import CurrentUser

router: Final = APIRouter(prefix="/api/v1/users", tags=["users"])


class Profile(BaseModel):
    """What a user may see of their own account."""

    username: str


@router.get("/me")
async def me(user: CurrentUser) -> Profile:
    """Return the profile of the current user."""
    return Profile(username=user.name)
