"""Create the application. To run it: `uvicorn --factory main_api.app:create_app`."""

from fastapi import FastAPI
from pwdlib import PasswordHash

from main_api.body_limit import BodyLimit
from main_api.problems import add_problems
from main_api.routes import auth, health, users
from main_api.sessions import Sessions
from main_api.settings import Settings, load
from main_api.tokens import Tokens
from main_api.users import Users
from revocation_client import RevocationClient


def create_app(
    settings: Settings | None = None,
    revocations: RevocationClient | None = None,
    hasher: PasswordHash | None = None,
) -> FastAPI:
    """Return the application. The defaults are settings and a client from the environment, and pwdlib's hasher.

    Raises SettingsError, ConfigurationError.
    """
    settings = settings or load()
    revocations = revocations or RevocationClient.from_env(on_unavailable=settings.on_unavailable)
    tokens = Tokens(settings.jwt_secret, settings.access_lifetime_seconds, settings.refresh_lifetime_seconds)
    app = FastAPI(title="Main API", lifespan=revocations.lifespan)
    app.state.sessions = Sessions(Users(settings.password_hashes, hasher), tokens, revocations)
    app.add_middleware(BodyLimit)
    add_problems(app)
    for routes in (auth, users, health):
        app.include_router(routes.router)
    return app
