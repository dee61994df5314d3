"""Tests of the settings. A wrong setting raises an error of one line that names it and holds no secret."""

import pathlib

import pytest

from main_api.settings import SettingsError, load

HASH = "$argon2id$v=19$m=65536,t=3,p=4$c2FsdHNhbHQ$aGFzaGhhc2g"
GOOD = {"MAIN_API_JWT_SECRET": "s" * 32, "MAIN_API_USERS": f"alice={HASH}\nbob={HASH}"}


def test_the_least_that_is_needed() -> None:
    """A secret and users are the only settings without a default, and the repr shows neither."""
    settings = load(GOOD)
    assert settings.password_hashes == {"alice": HASH, "bob": HASH}
    assert (settings.access_lifetime_seconds, settings.on_unavailable) == (900, "allow")
    assert "ssss" not in repr(settings)
    assert "argon2" not in repr(settings)


def test_secrets_may_stand_in_files(tmp_path: pathlib.Path) -> None:
    """A `_FILE` variable names a file that holds the secret, as is usual in containers."""
    (tmp_path / "secret").write_text("t" * 40 + "\n")
    settings = load({"MAIN_API_JWT_SECRET_FILE": str(tmp_path / "secret"), "MAIN_API_USERS": GOOD["MAIN_API_USERS"]})
    assert settings.jwt_secret == "t" * 40


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAIN_API_JWT_SECRET", None),
        ("MAIN_API_JWT_SECRET", ""),
        ("MAIN_API_JWT_SECRET", "hunter2"),
        ("MAIN_API_JWT_SECRET_FILE", "/nonexistent/hunter2"),
        ("MAIN_API_USERS", None),
        ("MAIN_API_USERS", "alice=hunter2"),
        ("MAIN_API_USERS", f"={HASH}"),
        ("MAIN_API_USERS", f"alice={HASH} alice={HASH}"),
        ("MAIN_API_ACCESS_LIFETIME_SECONDS", "0"),
        ("MAIN_API_ACCESS_LIFETIME_SECONDS", "1e3"),
        ("MAIN_API_REFRESH_LIFETIME_SECONDS", "2592001"),
        ("MAIN_API_ON_UNAVAILABLE", "maybe"),
    ],
)
def test_a_wrong_one_is_named(name: str, value: str | None) -> None:
    """A setting that is missing or wrong raises an error of one line that names it and does not repeat its value."""
    given = {each: text for each, text in (GOOD | {name: value}).items() if text is not None}
    with pytest.raises(SettingsError, match=name.removesuffix("_FILE")) as caught:
        load(given)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
