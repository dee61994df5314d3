"""Which requests are login attempts: every spelling of a login path, and no other path."""

import time

import pytest
from hypothesis import given, settings, strategies

from revocation_service.gateway.login_paths import LoginPaths

PATHS = LoginPaths(["/auth/login", "/api/v1/auth/login"])

SPELLINGS = [
    "/auth/login",
    "/api/v1/auth/login",
    "/AUTH/Login",
    "/auth/login/",
    "/auth/login//",
    "//auth//login",
    "/auth/./login",
    "/auth/login/.",
    "/x/../auth/login",
    "/auth/login/x/..",
    "/../auth/login",
    "/auth/%6cogin",
    "/auth/%6Cogin",
    "/%61%75%74%68/%6c%6f%67%69%6e",
    "/auth%2flogin",
    "/auth%252Flogin",
    "/auth%25252525252Flogin",
    "/auth/%" + "25" * 2000 + "6cogin",
    "/%2e%2e/auth/login",
    "/%2e/auth/login",
    "/..%2fauth/login",
    "/x%2f..%2fauth%2flogin",
    "/auth/login;x=1",
    "/auth;a=b/login;c",
    "/auth/login;%2fx",
    "/x/..;/auth/login",
    "/x/..;a=b/auth/login",
    "/auth%3bx/login",
    "/auth\\login",
    "\\auth\\login",
    "/auth%5clogin",
    "/x\\..\\auth\\login",
    "/auth/x%2fy/../login",
    "/auth//../login",
    "/auth/;x/../login",
    "/x%3f/../auth/login",
    "http://host/auth/login",
    "HTTP://user@host:80/auth/login?x=1",
    "http://host//auth/login",
    "http:/auth/login",
    "//host/auth/login",
    "/auth/login?next=/",
    "/auth/login?",
    "/auth/login#x",
    "/auth/login%3fx",
    "/auth/login%23x",
    "/auth/login%00",
    "/auth/login%00.png",
    "/auth/%00login",
    "/auth/login%20",
    "/auth/login%0d%0a",
    "/auth/login%09",
    "/auth/login.",
    "/auth/%c1%acogin",
    "/auth%c0%aflogin",
    "/auth%e0%80%aflogin",
    "/auth%f0%80%80%aflogin",
    "/auth/%u006cogin",
    "/auth/%ef%bd%8cogin",
    "/auth%ef%bc%8flogin",
    "/auth/log\u0131n",
    "/auth/LOG%C4%B0N",
    "/auth/lo%c2%adgin",
    "/auth/lo%e2%80%8bgin",
    "/\u24d0uth/login",
    "/" + "x/../" * 500 + "auth/login",
]

OTHERS = [
    "/",
    "*",
    "",
    "/auth",
    "/login",
    "/auth/logins",
    "/auth/login/x",
    "/auth/login/../x",
    "/auth/lo%67out",
    "/auth/logout",
    "/api/auth/login",
    "/x/auth/login",
    "/users/me",
    "/users/me?next=/auth/login",
    "/users/me#/auth/login",
    "/files/a%20b/c;d?e=/auth/login",
    "/%zz/%",
    "/auth/l\u00f8gin",
    "http://host/",
    "http://host",
    "/" + "x/" * 2000,
]


@pytest.mark.parametrize("target", SPELLINGS, ids=lambda target: target[:40])
def test_every_spelling_of_a_login_path_matches(target: str) -> None:
    """However a login path is encoded, dotted, cased or decorated, it is one."""
    assert PATHS.is_attempt("POST", target, [])


@pytest.mark.parametrize("target", OTHERS, ids=lambda target: target[:40])
def test_other_paths_do_not_match(target: str) -> None:
    """Other paths are none, also where a login path stands in their query."""
    assert not PATHS.is_attempt("POST", target, [])


def test_both_sides_are_spelled_alike() -> None:
    """A login path may be configured in any spelling, and is the same."""
    paths = LoginPaths(["/Auth//Login/", "/anmeldung/%C3%BCber"])
    assert paths.match("/auth/login")
    assert paths.match("/anmeldung/\u00fcber")
    assert paths.match("/anmeldung/%c3%bcBER/")
    assert not paths.match("/anmeldung")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "get", "Get", "FOO", "PROPFIND", "QUERY", ""])
def test_any_method_that_may_log_in_is_an_attempt(method: str) -> None:
    """Every method but GET, HEAD and OPTIONS is an attempt, unknown and oddly written ones too."""
    assert PATHS.is_attempt(method, "/auth/login", [("Host", "x")])


@pytest.mark.parametrize("name", ["X-Original-URL", "x-rewrite-url", "X_Original_Url"])
def test_a_target_in_a_header_is_one_too(name: str) -> None:
    """A login path in a header from which some servers take the target is an attempt, however it is spelled."""
    assert PATHS.is_attempt("POST", "/x", [("Host", "x"), (name, "/AUTH//%6cogin?a=b")])
    assert PATHS.is_attempt("GET", "/x", [(name, "/auth/login?_method=POST")])
    assert not PATHS.is_attempt("GET", "/x", [(name, "/auth/login")])
    assert not PATHS.is_attempt("POST", "/x", [(name, "/users/me")])


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/auth/login", [("X-HTTP-Method-Override", "POST")]),
        ("/auth/login", [("x-http-method-override", "")]),
        ("/auth/login", [("Host", "x"), ("X-Method-Override", "post")]),
        ("/auth/login", [("X-HTTP-Method", "POST")]),
        ("/auth/login", [("X_HTTP_METHOD_OVERRIDE", "POST")]),
        ("/auth/login?_method=POST", []),
        ("/auth/login?a=b&_METHOD=post", []),
        ("/auth/login?a;%5fmethod=post", []),
        ("/auth/login?%255fmethod=post", []),
        ("//auth//login;x?_method=POST", []),
        ("/auth/login?%" + "25" * 4000 + "5fmethod=POST", []),
    ],
)
def test_an_overridden_method_is_an_attempt(method: str, target: str, headers: list[tuple[str, str]]) -> None:
    """GET, HEAD and OPTIONS are attempts where the request says that its method is another."""
    assert PATHS.is_attempt(method, target, headers)
    assert not PATHS.is_attempt(method, "/auth/login?method=POST", [("X-Method", "POST")])
    assert not PATHS.is_attempt(method, "/users/me?_method=POST", headers)


_ODD = ["/", "//", "\\", ".", "..", "/../", "%2e", "%2f", "%5c", "%25", "%", ";x", ";", "?", "#"]
_WORDS = [
    "%3f",
    "%00",
    "%c0%af",
    "auth",
    "login",
    "AUTH",
    "x",
    "%u002f",
    "\uff0f",
    "\u2025",
    "%ef%bc%8f",
    " ",
    "%20",
    "http:",
    "2f",
    "5c",
]
_PIECES = strategies.sampled_from([*_ODD, *_WORDS])


@settings(max_examples=300, deadline=None)
@given(strategies.lists(_PIECES, max_size=40).map("".join))
def test_reading_any_target_ends_and_no_query_can_hide_a_path(target: str) -> None:
    """Every target is judged without an error, and what stands behind a `?` changes nothing."""
    path = "/" + target.partition("?")[0]
    assert PATHS.match(path) == PATHS.match(f"{path}?{target}")


@settings(max_examples=300, deadline=None)
@given(strategies.lists(strategies.sampled_from(["/", "./", "x/../", "%2e/", "x%2f..%2f", ";p/", "\\"]), max_size=12))
def test_what_resolves_to_a_login_path_matches(detours: list[str]) -> None:
    """Any series of detours before a login path leaves it one."""
    assert PATHS.match("/" + "".join(detours) + "auth/login")


@pytest.mark.parametrize(
    "target",
    [
        "/auth/" + "%3" * 8000 + "5",
        "/" + "a/../" * 3200,
        "/" + "%2e/" * 4000 + "x",
        "/" + "a/" * 4000 + "../" * 2600,
        "/" + "%EF%BC%8F" * 1800,
        "/" + ";a/" * 5400,
        "/" + "%u2025/" * 2300,
        "/" + "%E1%BE%81" * 1800,
        "/" + "%25" * 5400,
    ],
    ids=lambda target: target[:12],
)
def test_a_target_that_is_hard_to_read_costs_little(target: str) -> None:
    """The longest targets that the gateway reads are judged in bounded time, however they nest."""
    began = time.process_time()
    PATHS.match(target)
    assert time.process_time() - began < 1
