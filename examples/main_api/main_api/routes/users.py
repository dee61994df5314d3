"""The part that is behind the login."""

from typing import Final

from fastapi import APIRouter
from pydantic import BaseModel

from main_api.current_user import CurrentUser

router: Final = APIRouter(prefix="/api/v1/users", tags=["users"])


class Profile(BaseModel):
    """A user, as users see themselves."""

    username: str


@router.get("/me")
async def me(user: CurrentUser) -> Profile:
    """Who I am."""
    return Profile(username=user.name)
