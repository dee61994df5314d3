"""Whether a request is a login attempt, by its method and its target, however that is spelled. Pure.

Nobody knows how the upstream reads a target: whether it decodes before or after it resolves dots, how often, and what
it takes a `;` for. So every reading is tried, and one that leads to a login path is enough: to match too much is right.

Reading is bounded for a request as a whole, whatever it holds: one that would take more is a login without being read
further. A GET, HEAD or OPTIONS without a method override is none, however long. A POST to another path that is longer
than is read, and not plain, is counted as a login of its sender, and passed on like one: that is all it costs.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Final

MOST_DECODINGS: Final = 8
MOST_CHARACTERS: Final = 4_096
PATH_MAX_CHARACTERS: Final = 2_048
STRANGE_PATH_MAX_CHARACTERS: Final = 256
QUERY_MAX_CHARACTERS: Final = 4_096
"""A path that is longer or still not stable after so many decodings, or readings of one request that are longer
together, are meant to confuse: they match. One that is not ASCII, which only a header can hold, may grow much. An
encoded query that is longer may hold a method override.
"""

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
OVERRIDE_HEADERS: Final = frozenset({"x-http-method-override", "x-method-override", "x-http-method"})
TARGET_HEADERS: Final = frozenset({"x-original-url", "x-rewrite-url"})
"""Headers from which some servers take the target; as everywhere, some of those take `_` in a name for `-`."""

OVERRIDE_PARAMETER: Final = "_method"

_PLAIN: Final = re.compile(r"(?:/[A-Za-z0-9_-]+)+/?", re.ASCII)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:", re.ASCII)
_PARAMETERS: Final = re.compile(r";[^/\\]*")
_REST: Final = re.compile(r"[?#\0].*", re.DOTALL)
_SLASHES: Final = re.compile(r"[/\\]")
_NESTED_PERCENT: Final = re.compile(r"%(?:25)+")
_PERCENT_U: Final = re.compile(r"%u([0-9a-fA-F]{4})")
_ESCAPE: Final = re.compile(rb"%([0-9a-fA-F]{2})")
_OVERLONG: Final = re.compile(rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80-\x9f][\x80-\xbf]|\xf0[\x80-\x8f][\x80-\xbf]{2}")
_DROPPED_CATEGORIES: Final = frozenset({"Mn", "Me", "Cf", "Cc", "Zs", "Zl", "Zp", "Cs"})
_DOTLESS_I: Final = str.maketrans("ıȷ", "ij")


class LoginPaths:
    """The paths of a login, and all that may be taken for one of them."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = frozenset(_without_suffix(tuple(_segments(_decoded(path)))) for path in paths)
        self._longest = max(map(len, self._paths), default=0)

    def is_attempt(self, method: str, target: str, headers: Iterable[tuple[str, str]]) -> bool:
        """Whether this is an attempt to log in; the target as it stands in the request line."""
        named = [(name.lower().replace("_", "-"), value) for name, value in headers]
        told = [(name, value) for name, value in named if name in TARGET_HEADERS]
        targets = [target, *(value for _name, value in told)]
        if method in SAFE_METHODS and not _overridden(targets, named):
            return False
        if len(told) > len({name for name, _value in told}):
            return True  # nobody knows which of two is taken
        budget = _Budget(MOST_CHARACTERS)
        return any(self._matches(each, budget) for each in targets)

    def match(self, target: str) -> bool:
        """Whether any reading of the target leads to a login path."""
        return self._matches(target, _Budget(MOST_CHARACTERS))

    def _matches(self, target: str, budget: "_Budget") -> bool:
        path = target.partition("?")[0]
        if _PLAIN.fullmatch(path):
            return self._is_login(path)
        if len(path) > (PATH_MAX_CHARACTERS if path.isascii() else STRANGE_PATH_MAX_CHARACTERS):
            return True
        return self._leads_to_login({path, *_without_authority(path)}, budget)

    def _leads_to_login(self, unread: set[str], budget: "_Budget") -> bool:
        """Read until nothing new comes of it; each reading is looked at once, and read once."""
        known: set[str] = set()
        read: set[str] = set()
        for _ in range(MOST_DECODINGS):
            found = {reading for path in unread for reading in (path, *_read(path))} - known
            if any(map(budget.is_spent_by, found)) or any(map(self._is_login, found)):
                return True
            known |= found
            read |= unread
            unread = {*found, *map(_decoded, found)} - read
            if not unread:
                return False
        return True

    def _is_login(self, path: str) -> bool:
        return _without_suffix(tuple(islice(_segments(path), self._longest + 1))) in self._paths


@dataclass(slots=True)
class _Budget:
    """How many characters of readings are still looked at, for all the targets of a request together."""

    left: int

    def is_spent_by(self, reading: str) -> bool:
        """Take what a reading costs, the shortest one too; there is none for what is too much."""
        self.left -= len(reading) + 1
        return self.left < 0


def _overridden(targets: Sequence[str], named: Iterable[tuple[str, str]]) -> bool:
    """Whether a request says that its method is another, or hides what it says."""
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


def _without_authority(path: str) -> Iterator[str]:
    """The path of a target in absolute form (RFC 9112 section 3.2.2), or of one that begins with two slashes."""
    scheme = _SCHEME.match(path)
    rest = path[scheme.end() :] if scheme else path
    if scheme:
        yield "/" + rest
    if _SLASHES.sub("/", rest[:2]) == "//":
        yield "/" + "/".join(_SLASHES.split(rest[2:])[1:])


def _read(path: str) -> Iterator[str]:
    """A path with and without what may be cut off or resolved before the next decoding."""
    for parameters in {path, _PARAMETERS.sub("", path)}:
        for rest in {parameters, _REST.sub("", parameters)}:
            segments = _SLASHES.split(rest.removeprefix("/"))
            yield rest
            yield _resolved(segment for segment in segments if segment)
            yield _resolved(segments)  # RFC 3986 section 5.2.4: an empty segment is one


def _resolved(segments: Iterable[str]) -> str:
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    return "/" + "/".join(kept)


def _decoded(text: str) -> str:
    """The text decoded once more, escapes of the percent sign all at once, and each letter in its plainest form."""
    text = _PERCENT_U.sub(lambda found: chr(int(found[1], 16)), _NESTED_PERCENT.sub("%", text))
    raw = text.encode("utf-8", "surrogateescape" if _is_raw(text) else "surrogatepass")
    octets = _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), raw)
    plain = _OVERLONG.sub(_shortest, octets).decode("utf-8", "replace")
    return plain if plain.isascii() else "".join(map(_compatible, plain))


@lru_cache(maxsize=4_096)
def _compatible(character: str) -> str:
    """Its plainest form (NFKC), by itself: to sort all the marks of a text takes time that grows as a square."""
    return unicodedata.normalize("NFKC", character)


@lru_cache(maxsize=4_096)
def _base(character: str) -> str:
    """A character without its marks (NFKD); nothing where it is but a mark, or invisible."""
    widened = unicodedata.normalize("NFKD", character)
    return "".join(each for each in widened if unicodedata.category(each) not in _DROPPED_CATEGORIES)


def _is_raw(text: str) -> bool:
    """Whether octets stand in it that are no UTF-8, as the server's parser hands them on."""
    return not text.isascii() and all(not "\ud800" <= each <= "\udfff" or "\udc80" <= each <= "\udcff" for each in text)


def _shortest(found: re.Match[bytes]) -> bytes:
    """The character that an overlong form of UTF-8 stands for; RFC 3629 forbids them, and some decoders take them."""
    first, *others = found[0]
    code = first & (0x1F >> (len(others) - 1))
    for octet in others:
        code = code << 6 | octet & 0x3F
    return chr(code).encode("utf-8", "surrogatepass")


def _segments(path: str) -> Iterator[str]:
    """What two spellings of a path have in common, once it is decoded: case, marks and empty segments do not count."""
    folded = (_folded(segment) for segment in _SLASHES.split(_PARAMETERS.sub("", path)))
    return (segment for segment in folded if segment)


def _without_suffix(segments: tuple[str, ...]) -> tuple[str, ...]:
    """`login.json` is `login`: Rails routes it so (`(.:format)`), and Spring did."""
    if not segments:
        return segments
    *others, last = segments
    return (*others, last.rpartition(".")[0] or last)


def _folded(segment: str) -> str:
    """Letters alone matter, in whichever case; a dot at the end is dropped, as some file systems do."""
    if segment.isascii() and segment.isalnum():
        return segment.lower()
    kept = "".join(map(_base, segment.casefold()))
    return kept.casefold().translate(_DOTLESS_I).rstrip(".")
