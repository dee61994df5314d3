"""Decide from a request's method and target whether it is a login attempt. Pure.

Upstreams differ in how often they decode a path, whether they resolve dots before or after that, what `;` starts, and
which prefix they strip. So the path is decoded until nothing changes, and one reading that matches is enough. A reading
matches in two cases:

- It climbs: it has a segment `..`. Where it leads depends on the upstream, so it is not resolved.
- It ends in the segments of a login path, or a login path ends in its segments: `/v2/auth/login`, `/auth/login` and
  `/login` all match where `/auth/login` is configured. An application with a `root_path` (FastAPI, WSGI's SCRIPT_NAME)
  answers under both the long and the short path.

A false match only counts a request against its sender. The work for one request has a bound, and a request that would
need more is an attempt. GET, HEAD and OPTIONS without a method override are never attempts and are decided first.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

MOST_DECODINGS: Final = 8
"""A path that still changes after so many decodings matches."""

MOST_CHARACTERS: Final = 4_096
"""Bound on the readings of one request together; beyond it the request is an attempt."""

PATH_MAX_CHARACTERS: Final = 2_048
STRANGE_PATH_MAX_CHARACTERS: Final = 256
"""A longer path that is not plain matches. Paths that are not ASCII, which only a header can hold, may grow a lot when
they are normalized, so their bound is lower.
"""

QUERY_MAX_CHARACTERS: Final = 4_096
"""A longer encoded query counts as one that holds a method override."""

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
OVERRIDE_HEADERS: Final = frozenset({"x-http-method-override", "x-method-override", "x-http-method"})
TARGET_HEADERS: Final = frozenset({"x-original-url", "x-rewrite-url"})
"""Headers from which some servers take the target. Some servers read `_` in a header's name as `-`."""

OVERRIDE_PARAMETER: Final = "_method"

_PLAIN: Final = re.compile(r"(?:/[A-Za-z0-9_-]+)+/?", re.ASCII)
_ORIGIN: Final = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?(?:[/\\]{2,}[^/\\]*)?", re.ASCII)
_PARAMETERS: Final = re.compile(r";[^/\\]*")
_REST: Final = re.compile(r"[;?#\0].*", re.DOTALL)
_SLASHES: Final = re.compile(r"[/\\]")
_PERCENT_U: Final = re.compile(r"%u([0-9a-fA-F]{4})")
_ESCAPE: Final = re.compile(rb"%([0-9a-fA-F]{2})")
_OVERLONG: Final = re.compile(
    rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80-\x9f][\x80-\xbf]|\xf0[\x80-\x8f][\x80-\xbf]{2}"
    rb"|\xf8\x80\x80[\x80\x81][\x80-\xbf]|\xfc\x80{3}[\x80\x81][\x80-\xbf]"
)
_DROPPED_CATEGORIES: Final = frozenset({"Mn", "Me", "Cf", "Cc", "Zs", "Zl", "Zp", "Cs"})
_DROPPED_ASCII: Final = dict.fromkeys([*range(0x21), 0x7F])
_DOTLESS_I: Final = str.maketrans("ıȷ", "ij")


class LoginPaths:
    """The configured login paths."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = [_comparable(_segments(_decoded(path))) for path in paths]

    def is_attempt(self, method: str, target: str, headers: Iterable[tuple[str, str]]) -> bool:
        """Return whether a request is a login attempt; `target` is the one in the request line, as it was sent."""
        named = [(name.lower().replace("_", "-"), value) for name, value in headers]
        told = [(name, value) for name, value in named if name in TARGET_HEADERS]
        targets = [target, *(value for _name, value in told)]
        if method in SAFE_METHODS and not _overridden(targets, named):
            return False
        if len(told) > len({name for name, _value in told}):
            return True  # servers differ in which of two equal headers they take
        budget = _Budget(MOST_CHARACTERS)
        return any(self._matches(each, budget) for each in targets)

    def match(self, target: str) -> bool:
        """Return whether any reading of the target climbs or leads to a login path."""
        return self._matches(target, _Budget(MOST_CHARACTERS))

    def _matches(self, target: str, budget: "_Budget") -> bool:
        path = target.partition("?")[0]
        if _PLAIN.fullmatch(path):
            return self._reading_matches(path)
        if len(path) > (PATH_MAX_CHARACTERS if path.isascii() else STRANGE_PATH_MAX_CHARACTERS):
            return True
        return self._any_reading_matches({path, _ORIGIN.sub("", path, count=1)}, budget)

    def _any_reading_matches(self, unread: set[str], budget: "_Budget") -> bool:
        """Decode until no new reading is found; look at each reading once, and decode it once."""
        known: set[str] = set()
        for _ in range(MOST_DECODINGS):
            if any(budget.is_spent_by(reading) or self._reading_matches(reading) for reading in unread):
                return True
            known |= unread
            unread = {reading for path in unread for reading in _next_readings(path)} - known
            if not unread:
                return False
        return True

    def _reading_matches(self, path: str) -> bool:
        segments = _segments(path)
        if any(map(_climbs, segments)):
            return True
        names = _comparable(segments)
        return any(_is_tail(names, login) for login in self._paths)


@dataclass(slots=True)
class _Budget:
    """How many characters of readings may still be looked at, for all targets of a request together."""

    left: int

    def is_spent_by(self, reading: str) -> bool:
        """Take the cost of a reading, at least 1; return whether that was more than was left."""
        self.left -= len(reading) + 1
        return self.left < 0


def _overridden(targets: Sequence[str], named: Iterable[tuple[str, str]]) -> bool:
    """Return whether a request overrides its method, or has a query in which an override may be hidden."""
    if any(name in OVERRIDE_HEADERS for name, _value in named):
        return True
    query = "&".join(target.partition("?")[2] for target in targets)
    for _ in range(MOST_DECODINGS):
        if OVERRIDE_PARAMETER in query.casefold():
            return True
        if query.isascii() and "%" not in query:
            return False
        if len(query) > QUERY_MAX_CHARACTERS:
            return True
        query, before = _decoded(query), query
        if query == before:
            return False
    return True


def _next_readings(path: str) -> Iterator[str]:
    """Yield the path decoded once, with and without the parts that an upstream may cut off before it decodes."""
    for kept in {path, _PARAMETERS.sub("", path)}:
        for whole in {kept, _REST.sub("", kept)}:
            octets = _octets(whole)
            yield _text(_OVERLONG.sub(_shortest, octets))
            yield _text(octets)


def _decoded(text: str) -> str:
    """Return the text decoded once more, with overlong forms of UTF-8 read as the characters that they stand for."""
    return _text(_OVERLONG.sub(_shortest, _octets(text)))


def _octets(text: str) -> bytes:
    """Return the octets of a text, its escapes decoded once."""
    text = _PERCENT_U.sub(lambda found: chr(int(found[1], 16)), text)
    raw = text.encode("utf-8", "surrogateescape" if _is_raw(text) else "surrogatepass")
    return _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), raw)


def _text(octets: bytes) -> str:
    """Return the characters in their NFKC form; octets that are not UTF-8 are dropped, as some decoders do."""
    plain = octets.decode("utf-8", "ignore")
    return plain if plain.isascii() else "".join(map(_compatible, plain))


@lru_cache(maxsize=4_096)
def _compatible(character: str) -> str:
    """Return the NFKC form of one character; sorting the marks of a whole text would take quadratic time."""
    return unicodedata.normalize("NFKC", character)


@lru_cache(maxsize=4_096)
def _base(character: str) -> str:
    """Return a character without its marks (NFKD); an empty text for a mark, white space or an invisible one."""
    widened = unicodedata.normalize("NFKD", character)
    return "".join(each for each in widened if unicodedata.category(each) not in _DROPPED_CATEGORIES)


def _is_raw(text: str) -> bool:
    """Return whether the text holds octets that are not UTF-8, as aiohttp's parser passes them on (surrogateescape)."""
    return not text.isascii() and all(not "\ud800" <= each <= "\udfff" or "\udc80" <= each <= "\udcff" for each in text)


def _shortest(found: re.Match[bytes]) -> bytes:
    """Return the character of an overlong form of UTF-8; RFC 3629 forbids these, but some decoders accept them."""
    first, *others = found[0]
    code = first & (0x1F >> (len(others) - 1))
    for octet in others:
        code = code << 6 | octet & 0x3F
    return chr(code).encode("utf-8", "surrogatepass")


def _segments(path: str) -> list[str]:
    """Return the folded segments of a path, without their parameters."""
    path = _PARAMETERS.sub("", path)
    if path.isascii():
        return _SLASHES.split(path.lower().translate(_DROPPED_ASCII))
    return [_folded(segment) for segment in _SLASHES.split(path)]


def _folded(text: str) -> str:
    """Return the text in lower case, without marks, white space and invisible characters."""
    return "".join(map(_base, text.casefold())).casefold().translate(_DOTLESS_I)


def _climbs(segment: str) -> bool:
    """Return whether a segment is `..`; more dots count too, because Windows drops dots and spaces at the end."""
    return len(segment) > 1 and not segment.strip(".")


def _is_tail(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether one of the two is the end of the other; an empty path is the end of an empty one alone."""
    shared = min(len(one), len(other))
    return one[-shared:] == other[-shared:]  # with `shared` 0 these are the whole paths


def _comparable(segments: Iterable[str]) -> list[str]:
    """Return the segments that have a name, without dots at their end and without the suffix of the last.

    `login.json` is `login`: Rails routes it so (`(.:format)`), and Spring did.
    """
    kept = [name for segment in segments if (name := segment.rstrip("."))]
    return [*kept[:-1], *(last.rpartition(".")[0] or last for last in kept[-1:])]
