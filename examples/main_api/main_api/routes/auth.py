"""Login, refresh and the two logouts."""

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Form, Response
from pydantic import BaseModel, Field

from main_api.current_user import BearerToken, CurrentUser, SessionsOfApp
from main_api.sessions import NAME_MAX_CHARACTERS, PASSWORD_MAX_CHARACTERS, TOKEN_MAX_CHARACTERS
from main_api.tokens import TokenPair

router: Final = APIRouter(prefix="/api/v1/auth", tags=["auth"])

Name = Annotated[str, Form(min_length=1, max_length=NAME_MAX_CHARACTERS)]
Password = Annotated[
    str, Form(min_length=1, max_length=PASSWORD_MAX_CHARACTERS, json_schema_extra={"format": "password"})
]
RefreshToken = Annotated[str, Form(min_length=1, max_length=TOKEN_MAX_CHARACTERS)]


class TokenAnswer(BaseModel):
    """The token response of RFC 6749 section 5.1."""

    access_token: str
    refresh_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - the type's name
    expires_in: Annotated[int, Field(description="seconds")]


@router.post("/login")
async def login(
    response: Response,
    sessions: SessionsOfApp,
    username: Name,
    password: Password,
    grant_type: Annotated[Literal["password"], Form()] = "password",
) -> TokenAnswer:
    """Log in with the password form of OAuth 2 (RFC 6749 section 4.3.2), and return the first tokens."""
    return _answer(response, await sessions.log_in(username, password))


@router.post("/refresh")
async def refresh(
    response: Response,
    sessions: SessionsOfApp,
    refresh_token: RefreshToken,
    grant_type: Annotated[Literal["refresh_token"], Form()] = "refresh_token",
) -> TokenAnswer:
    """Return new tokens for a refresh token that was never used (RFC 6749 section 6)."""
    return _answer(response, await sessions.refresh(refresh_token))


@router.post("/logout", status_code=204, response_class=Response)
async def logout(token: BearerToken, sessions: SessionsOfApp) -> None:
    """End this session. 204 means that it has ended, and 503 that it may not have ended."""
    await sessions.log_out(token)


@router.post("/logout-all", status_code=204, response_class=Response)
async def logout_all(user: CurrentUser, sessions: SessionsOfApp) -> None:
    """End every session of the user. A later login works."""
    await sessions.log_out_everywhere(user)


def _answer(response: Response, pair: TokenPair) -> TokenAnswer:
    response.headers["Cache-Control"] = "no-store"
    return TokenAnswer(access_token=pair.access_token, refresh_token=pair.refresh_token, expires_in=pair.expires_in)
