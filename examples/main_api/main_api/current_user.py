"""Dependencies of the routes: the sessions, the bearer token, and its user."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import OAuth2PasswordBearer

from main_api.sessions import Sessions
from main_api.users import User

oauth2_scheme = OAuth2PasswordBearer(tokenUrl="/api/v1/auth/login", refreshUrl="/api/v1/auth/refresh")

BearerToken = Annotated[str, Depends(oauth2_scheme)]


def sessions_of(request: Request) -> Sessions:
    """Return the sessions that `create_app` made."""
    sessions: Sessions = request.app.state.sessions
    return sessions


SessionsOfApp = Annotated[Sessions, Depends(sessions_of)]


async def get_current_user(token: BearerToken, sessions: SessionsOfApp) -> User:
    """Return the user of the bearer token. A bad, expired or revoked token gets 401 (`main_api.problems`)."""
    user, _claims = await sessions.current(token)
    return user


CurrentUser = Annotated[User, Depends(get_current_user)]
