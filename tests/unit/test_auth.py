"""API keys: how entries of the setting are read, and which Authorization headers are accepted."""

from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest

from revocation_service.errors import SettingsError
from revocation_service.settings import load
from tests.unit.authorized import Door, door

CHECK = "check-aaaaaaaaaaaaaaaaaaaaaaaa"
REVOKE = "revoke-aaaaaaaaaaaaaaaaaaaaaaa"
ADMIN = "admin~+/=.-_aaaaaaaaaaaaaaaa=="
KEYS = f"checker={CHECK}:check,revoker={REVOKE}:revoke,ops={ADMIN}:admin"
UNKNOWN = "unauthorized"
LACKING = "insufficient_scope"


@pytest.fixture
async def locked() -> AsyncIterator[Door]:
    """An application with one key for each of the scopes check, revoke and admin."""
    async with door(KEYS) as opened:
        yield opened


def bearer(key: str) -> bytes:
    """Return the header that carries a key."""
    return f"Authorization: Bearer {key}".encode()


async def test_a_key_is_known_by_its_name(locked: Door) -> None:
    """A request with a key is accepted as the caller that the entry of the key names."""
    assert await locked.ask(bearer(CHECK)) == "checker"
    assert await locked.ask(bearer(REVOKE), scope="revoke") == "revoker"
    assert await locked.ask(bearer(ADMIN), scope="admin") == "ops"


async def test_admin_includes_the_others(locked: Door) -> None:
    """A key with scope admin may check and revoke, too. Neither check nor revoke includes another scope."""
    expected = {
        CHECK: {"check": "checker", "revoke": LACKING, "admin": LACKING},
        REVOKE: {"check": LACKING, "revoke": "revoker", "admin": LACKING},
        ADMIN: {"check": "ops", "revoke": "ops", "admin": "ops"},
    }
    for key, answers in expected.items():
        for scope, answer in answers.items():
            assert await locked.ask(bearer(key), scope=scope) == answer


@pytest.mark.parametrize(
    "written", ["Bearer {}", "bearer {}", "BEARER {}", "BeArEr    {}", "Bearer {}   ", "\tBearer {}\t"]
)
async def test_the_scheme_has_no_case_and_spaces_do_not_count(locked: Door, written: str) -> None:
    """The scheme is case-insensitive (RFC 9110 section 11.1), and white space around the value is ignored."""
    assert await locked.ask(b"Authorization:" + written.format(CHECK).encode()) == "checker"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        CHECK,
        f"Basic {CHECK}",
        f"Token {CHECK}",
        f"Bearer{CHECK}",
        f"Bearer\t{CHECK}",
        f"Bearer: {CHECK}",
        f'Bearer "{CHECK}"',
        f"Bearer {CHECK} {CHECK}",
        f"Bearer x {CHECK}",
        f"Bearer {CHECK},",
        f"Bearer {CHECK}, Bearer {CHECK}",
        f"Bearer Bearer {CHECK}",
        f"Bearer {CHECK[:-1]}",
        f"Bearer {CHECK}a",
        f"Bearer {CHECK.upper()}",
        f"Bearer checker={CHECK}",
        f"Bearer {CHECK}:check",
        "Bearer checker",
    ],
)
async def test_any_other_value_lets_nobody_in(locked: Door, value: str) -> None:
    """A header with another scheme, more than one word, a part of a key or a whole entry is unauthorized."""
    assert await locked.ask(f"Authorization: {value}".encode()) == UNKNOWN


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer \xff\xfe" + CHECK.encode(),
        b"Bearer " + CHECK.encode() + b"\xff",
        b"Bearer " + CHECK.encode() + "é".encode(),
        b"Bearer " + CHECK.encode() + "\u00a0".encode(),
        b"Bearer\xc2\xa0" + CHECK.encode(),
        b"Bearer " + CHECK.encode() + "\u2003x".encode(),
        b"\xed\xa0\x80",
    ],
)
async def test_bytes_outside_ascii_let_nobody_in(locked: Door, value: bytes) -> None:
    """A header with bytes outside ASCII is unauthorized, and causes no server error."""
    assert await locked.ask(b"Authorization: " + value) == UNKNOWN


@pytest.mark.parametrize("value", [b"Bearer \x00" + CHECK.encode(), b"Bearer " + CHECK.encode() + b"\x01"])
async def test_control_characters_are_no_http(locked: Door, value: bytes) -> None:
    """The HTTP parser answers 400 to control characters in a header (RFC 9110 section 5.5)."""
    assert await locked.ask(b"Authorization: " + value) == ""


async def test_two_headers_let_nobody_in(locked: Door) -> None:
    """A request with two Authorization headers is ambiguous, so it is unauthorized even if they are the same."""
    for one, other in ((CHECK, CHECK), (CHECK, ADMIN), (ADMIN, "x"), ("x", ADMIN)):
        assert await locked.ask(bearer(one), bearer(other)) == UNKNOWN


async def test_a_key_counts_in_its_header_alone(locked: Door) -> None:
    """A key in a cookie, or in a header other than Authorization, is ignored."""
    assert await locked.ask() == UNKNOWN
    assert await locked.ask(f"Cookie: Authorization=Bearer {CHECK}".encode()) == UNKNOWN
    assert await locked.ask(f"X-Api-Key: {CHECK}".encode(), f"Proxy-Authorization: Bearer {CHECK}".encode()) == UNKNOWN


async def test_a_digest_stands_for_its_key() -> None:
    """An entry may hold sha256:<hex>, in any case, instead of the key. The digest itself is not accepted as a key."""
    digest = sha256(CHECK.encode()).hexdigest()
    for written in (digest, digest.upper()):
        async with door(f"checker=sha256:{written}:check") as opened:
            assert await opened.ask(bearer(CHECK)) == "checker"
            assert await opened.ask(bearer(f"sha256:{written}")) == UNKNOWN
            assert await opened.ask(bearer(written)) == UNKNOWN


async def test_a_name_may_have_two_keys_while_they_change() -> None:
    """During a rotation two entries may have the same name. Both keys are accepted, each with its own scopes."""
    async with door(f"api={CHECK}:check,api={REVOKE}:check+revoke") as opened:
        assert await opened.ask(bearer(CHECK)) == await opened.ask(bearer(REVOKE)) == "api"
        assert await opened.ask(bearer(CHECK), scope="revoke") == LACKING
        assert await opened.ask(bearer(REVOKE), scope="revoke") == "api"


async def test_every_key_of_many_is_found() -> None:
    """Keys at the beginning, in the middle and at the end of 200 entries are all accepted."""
    keys = [f"key-{number:03}-aaaaaaaaaaaaaaaaaaaa" for number in range(200)]
    async with door(",".join(f"n{number}={key}:check" for number, key in enumerate(keys))) as opened:
        for number in (0, 1, 99, 198, 199):
            assert await opened.ask(bearer(keys[number])) == f"n{number}"


def test_the_name_ends_at_the_first_equals_and_scopes_begin_after_the_last_colon() -> None:
    """A key may contain `=` itself. Scopes are joined by plus signs, in any order."""
    (key,) = load({"REVOCATION_API_KEYS": "a.b-c_1=key=with=equals=and=more==:revoke+check"}).settings.api_keys
    assert (key.name, sorted(key.scopes)) == ("a.b-c_1", ["check", "revoke"])
    assert key.digest == sha256(b"key=with=equals=and=more==").digest()


def test_a_file_has_one_entry_a_line(tmp_path: Path) -> None:
    """In a file of keys, empty lines, comments and white space around an entry are ignored."""
    file = tmp_path / "keys"
    file.write_text(f"# callers\n\n  checker={CHECK}:check  \r\nops={ADMIN}:admin\n")
    keys = load({"REVOCATION_API_KEYS_FILE": str(file)}).settings.api_keys
    assert [key.name for key in keys] == ["checker", "ops"]
    assert keys[0].digest == sha256(CHECK.encode()).digest()


@pytest.mark.parametrize(
    "entries",
    [
        CHECK,
        f"checker={CHECK}",
        f"checker:{CHECK}:check",
        f"={CHECK}:check",
        "checker=:check",
        f"checker={CHECK}:",
        f"checker={CHECK}:root",
        f"checker={CHECK}:check+check",
        f"checker={CHECK}:check revoke",
        f"checker={CHECK}:Check",
        "checker=short:check",
        f"checker={'a' * 19}:check",
        f"checker={CHECK} :check",
        f"checker={CHECK[:10]} {CHECK[10:]}:check",
        f"checker={CHECK}é:check",
        f"check er={CHECK}:check",
        f"{'x' * 65}={CHECK}:check",
        f"one={CHECK}:check,two={CHECK}:revoke",
        f"one={CHECK}:check,one={CHECK}:check",
        f"one={CHECK}:check,two=sha256:{sha256(CHECK.encode()).hexdigest()}:check",
        f"checker=sha256:{'0' * 63}:check",
        f"checker=sha256:{'g' * 64}:check",
    ],
)
def test_other_entries_are_refused(entries: str) -> None:
    """A wrong entry is refused with one line that names the variable and does not contain the key."""
    with pytest.raises(SettingsError, match=r"^REVOCATION_API_KEYS") as raised:
        load({"REVOCATION_API_KEYS": entries})
    assert CHECK not in raised.value.detail
    assert len(raised.value.detail.splitlines()) == 1


def test_a_key_is_in_no_repr() -> None:
    """The repr of the settings contains neither the keys nor their digests."""
    shown = repr(load({"REVOCATION_API_KEYS": KEYS}))
    for key in (CHECK, REVOKE, ADMIN):
        assert key not in shown
        assert sha256(key.encode()).hexdigest() not in shown
        assert repr(sha256(key.encode()).digest()) not in shown
