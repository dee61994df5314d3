"""Which requests count as login attempts, by method, target and headers."""

import pytest
from hypothesis import given, settings, strategies

from revocation_service.gateway import login_paths
from revocation_service.gateway.login_paths import LoginPaths
from tests.gateway.serving import bare_upstream, gateway_before
from tests.gateway.work import work_of

PATHS = LoginPaths(["/auth/login", "/api/v1/auth/login"])

SPELLINGS = [
    "/auth/login",
    "/auth/logi%c0%afn",
    "/auth%3B%252fx/login",
    "/auth/login;jsessionid=a/b",
    "/auth/login%3bjsessionid=a/b",
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
    "/auth/%" + "25" * 400 + "6cogin",
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
    "/auth/login%0D%0AX: y",
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
    "/" + "x/../" * 100 + "auth/login",
    "/" + "x/../" * 500 + "auth/login",
    "/auth/login.json",
    "/auth/login.JSON/",
    "/auth/login.%20x",
    "/auth/login%2ejson",
    "/AUTH/Login.html;x",
    "/auth/login.json?a=b",
    "/auth/login%252Ejson/",
    "/auth/lo%ffgin",
    "/auth;x%2fy/login",
    "/auth/login.\uff0fx",
    "/login",
    "/login/",
    "/%6cogin.json;x",
    "http://host/login",
    "//host/login",
    "///host/login",
    "/v1/auth/login",
    "/v2/auth/login",
    "/api/auth/login",
    "/x/y/z%2fauth/login.json",
    "/" + "x/" * 1_000 + "auth/login",
    "/users/me%23/auth/login",
]

CLIMBS = [
    f"/a/{dots}/users"
    for dots in [
        "..",
        ".%2e",
        "%2e.",
        "%2E%2e",
        "%252e%252e",
        "%%32%65.",
        "x/../..",
        "..;x",
        "..;",
        "..%3bx",
        ".;/..",
        "..%00",
        "..%00x",
        ".%00.",
        "..%20",
        "..%09",
        "..%20.",
        "..%3fx",
        "..%23",
        "..#",
        "..\\",
        "..\\x",
        "..%5cx",
        "x\\..",
        "x%5c%2e%2e",
        "x%2f..",
        "b%252f..%252f..",
        "\uff0e\uff0e",
        "%ef%bc%8e%ef%bc%8e",
        ".\u2024",
        "\u2025",
        "%u002e%u002e",
        "%uff0e.",
        "%c0%ae%c0%ae",
        "%c0%ae.",
        "%e0%80%ae.",
        "%f0%80%80%ae.",
        "%f8%80%80%80%ae.",
        "%fc%80%80%80%80%ae.",
        ".%ff.",
        ".%e2%80%8b.",
    ]
]
CLIMBS += [
    "/..",
    "/../",
    "/users/..",
    "/users%3f/../x",
    "http://h/a/../users",
    "http://../users",
    "http:/../users",
    "//../users",
    "//h/%2e%2e/users",
    "/a%2fb/%2e%2e/users",
    "/a%252fb/%2e%2e/users",
    "/x%5cy/%2e%2e/users",
    "/x\\y/../users",
]

OTHERS = [
    "/",
    "*",
    "",
    "/auth",
    "/auth/logins",
    "/xlogin",
    "/logins",
    "/auth/auth",
    "/admin/login",
    "/v2/login",
    "/auth/login/x",
    "/auth/login/x.y/z",
    "/a/..x/users",
    "/a/x../users",
    "/a/./users",
    "/a/%2e/users",
    "/a/.well-known",
    "/users?next=/../auth/login",
    "/users?%2e%2e/",
    "/auth/lo%67out",
    "/auth/logout",
    "/v2/xauth/login",
    "/auth/login/v2",
    "/users/me",
    "/users/me?next=/auth/login",
    "/files/a%20b/c;d?e=/auth/login",
    "/%zz/%",
    "/auth/l\u00f8gin",
    "http://host/",
    "http://host",
    "/" + "x/" * 1_000,
    "/files/" + "%E4%BD%A0" * 100,
    "/search?q=" + "%E4%BD%A0" * 1_500,
    "/auth/.login",
    "/auth/login.json/x",
    "/auth.json/login",
]


@pytest.mark.parametrize("target", SPELLINGS, ids=lambda target: target[:40])
def test_every_spelling_of_a_login_path_matches(target: str) -> None:
    """A POST to a login path is an attempt in any spelling: with escapes, dots, upper case, suffixes or prefixes."""
    assert PATHS.is_attempt("POST", target, [])


@pytest.mark.parametrize("target", OTHERS, ids=lambda target: target[:40])
def test_other_paths_do_not_match(target: str) -> None:
    """A POST to any other path is no attempt, even if its query contains a login path or `..`."""
    assert not PATHS.is_attempt("POST", target, [])


@pytest.mark.parametrize("target", CLIMBS, ids=ascii)
def test_a_path_that_climbs_is_an_attempt(target: str) -> None:
    """A POST to a path with a segment `..` in any decoding is an attempt; a GET only with an override."""
    assert PATHS.is_attempt("POST", target, [])
    assert PATHS.is_attempt("FOO", "/x", [("X-Original-URL", target)])
    assert PATHS.is_attempt("GET", target, [("X-HTTP-Method-Override", "POST")])
    assert not PATHS.is_attempt("GET", target, [])


def test_both_sides_are_spelled_alike() -> None:
    """Configured login paths are normalized like targets, so their spelling makes no difference."""
    paths = LoginPaths(["/Auth//Login/", "/anmeldung/%C3%BCber"])
    assert paths.match("/auth/login")
    assert paths.match("/anmeldung/\u00fcber")
    assert paths.match("/anmeldung/%c3%bcBER/")
    assert not paths.match("/anmeldung")
    assert LoginPaths(["/login.php"]).match("/login.json")


def test_a_prefix_on_either_side_makes_no_difference() -> None:
    """A path matches if its last segments are a login path, or if it is the last segments of a login path."""
    paths = LoginPaths(["/v2/auth/login"])
    for path in ("/v2/auth/login", "/auth/login", "/login", "/api/v2/auth/login", "http://host/auth/login"):
        assert paths.match(path), path
    for path in ("/", "/v2", "/v2/auth", "/auth", "/v3/auth/login", "/api/auth/login", "/xauth/login"):
        assert not paths.match(path), path


def test_a_login_at_the_root_matches_the_root_alone() -> None:
    """With `/` configured, `/` is a login and other paths are not."""
    paths = LoginPaths(["/"])
    assert all(map(paths.match, ["/", "//", "/.", "http://host/", "/%2f;x"]))
    assert not any(map(paths.match, ["/x", "/auth/login"]))


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "get", "Get", "FOO", "PROPFIND", "QUERY", ""])
def test_any_method_that_may_log_in_is_an_attempt(method: str) -> None:
    """A request to a login path is an attempt unless its method is GET, HEAD or OPTIONS, in upper case."""
    assert PATHS.is_attempt(method, "/auth/login", [("Host", "x")])


@pytest.mark.parametrize("name", ["X-Original-URL", "x-rewrite-url", "X_Original_Url"])
def test_a_target_in_a_header_is_one_too(name: str) -> None:
    """A POST with a login path in X-Original-URL or X-Rewrite-URL is an attempt, as some servers route by them."""
    assert PATHS.is_attempt("POST", "/x", [("Host", "x"), (name, "/AUTH//%6cogin?a=b")])
    assert PATHS.is_attempt("GET", "/x", [(name, "/auth/login"), ("X-HTTP-Method", "POST")])
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
    """A GET, HEAD or OPTIONS of a login path is an attempt if a header or the query may override the method."""
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
    """Matching a target raises no error, and a query does not change the result."""
    path = "/" + target.partition("?")[0]
    assert PATHS.match(path) == PATHS.match(f"{path}?{target}")


@settings(max_examples=300, deadline=None)
@given(strategies.lists(strategies.sampled_from(["/", "./", "x/../", "%2e/", "x%2f..%2f", ";p/", "\\"]), max_size=12))
def test_what_resolves_to_a_login_path_matches(detours: list[str]) -> None:
    """A login path still matches behind any series of detours, such as `./` or `x/../`."""
    assert PATHS.match("/" + "".join(detours) + "auth/login")


HARD = [
    "/auth/" + "%3" * 8000 + "5",
    "/" + "a/../" * 3200,
    "/" + "%2e/" * 4000 + "x",
    "/" + "a/" * 4000 + "../" * 2600,
    "/" + "%EF%BC%8F" * 1800,
    "/" + ";a/" * 5400,
    "/" + "%u2025/" * 2300,
    "/" + "%E1%BE%81" * 1800,
    "/" + "%25" * 5400,
    "/" + "/;%3b" * 3000,
    "/" + "/.;%253b%3f" * 1400,
    "/" + "\ufdfa" * 5000,
    "/" + "\u0316\u0301" * 5000,
]
MOST_WORK = 200_000
"""A bound in characters. A plain login path costs about a hundred. Without bounds each of HARD cost millions."""


@pytest.mark.parametrize("length", [250, 1_000, 2_000, 16_000])
@pytest.mark.parametrize("target", HARD, ids=lambda target: ascii(target[:12]))
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_target_that_is_hard_to_read_costs_little(method: str, target: str, length: int) -> None:
    """Judging a request takes bounded work, however hard its target, query or target headers are to decode."""
    hard = target[:length]
    header, other = ("X-Original-URL", hard), ("X-Rewrite-URL", hard)
    for asked, headers in [
        (hard, []),
        ("/x?" + hard, []),
        ("/x", [header, other, ("X-HTTP-Method", "POST")]),
        (hard, [header] * 190),
        (hard, [("X-Original-URL", "/x?" + hard)] * 4),
    ]:
        with work_of(login_paths) as work:
            PATHS.is_attempt(method, asked, headers)
        assert work.characters < MOST_WORK


LONG = "/" + "x/" * 2_000


@pytest.mark.parametrize("header", ["X-Original-URL", "X-Rewrite-URL"])
def test_what_is_too_much_to_read_counts_only_where_it_can_log_in(header: str) -> None:
    """A POST with a path that is too long, or with too many paths, is an attempt; a GET only with an override."""
    override = ("X-HTTP-Method-Override", "POST")
    for target, headers in [(LONG, []), ("/x", [(header, LONG)]), ("/x", [(header, "/a")] * 190)]:
        assert PATHS.is_attempt("POST", target, headers)
        for method in ("GET", "HEAD", "OPTIONS"):
            assert not PATHS.is_attempt(method, target, headers)
            assert PATHS.is_attempt(method, target, [*headers, override])
    twice = [(header, "/a"), (header.replace("-", "_"), "/auth/login")]
    assert PATHS.is_attempt("POST", "/x", twice)
    assert PATHS.is_attempt("POST", "/x", twice[::-1])


def test_a_query_that_cannot_be_read_hides_no_override_and_makes_no_attempt() -> None:
    """A GET of a login path is an attempt if its query is too long or cannot be decoded. On other paths it is not."""
    for query in ("%25" * 3_000, "next=" + "a" * 10_000, "next=%ff"):
        assert PATHS.is_attempt("GET", f"/auth/login?{query}", [])
        assert not PATHS.is_attempt("GET", f"/users/me?{query}", [])
    assert not PATHS.is_attempt("GET", "/auth/login?next=" + "%2Fa" * 500, [])


async def test_90_targets_in_one_request_take_little_work() -> None:
    """Of two requests with 90 target headers, the gateway counts the POST and not the GET. Both take little work."""
    value = ("/" + "/;%3b" * 100)[:290]
    fields = f"X-Original-URL: {value}\r\n".encode() * 90
    async with bare_upstream() as upstream, gateway_before(upstream.url) as gateway:
        with work_of(login_paths) as work:
            looked = await gateway.talk(b"GET /hello HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n")
            logged = await gateway.talk(b"POST /hello HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n" + fields + b"\r\n")
        assert (looked.statuses, logged.statuses) == ([200], [200])
        assert "X-RateLimit-Remaining" not in looked.headers
        assert logged.headers["X-RateLimit-Remaining"] == "4"
        assert work.characters < 2 * MOST_WORK
