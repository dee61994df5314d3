"""Dependencies of the routes: the sessions, the bearer token, and who sent it."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import OAuth2PasswordBearer

from main_api.sessions import Sessions
from main_api.users import User

oauth2_scheme = OAuth2PasswordBearer(tokenUrl="/api/v1/auth/login", refreshUrl="/api/v1/auth/refresh")

BearerToken = Annotated[str, Depends(oauth2_scheme)]


def sessions_of(request: Request) -> Sessions:
    """The sessions, as `create_app` made them."""
    sessions: Sessions = request.app.state.sessions
    return sessions


SessionsOfApp = Annotated[Sessions, Depends(sessions_of)]


async def get_current_user(token: BearerToken, sessions: SessionsOfApp) -> User:
    """Who sent the request; a token that is bad, expired or revoked is 401 (`main_api.problems`)."""
    user, _claims = await sessions.current(token)
    return user


CurrentUser = Annotated[User, Depends(get_current_user)]
