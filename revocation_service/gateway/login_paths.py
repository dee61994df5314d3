"""Decide from a request's method and target whether it is a login attempt. Pure.

Upstreams differ in how often they decode a path, and in which characters end a path or a segment. So the path is read
in a few ways at each stage of its decoding, and one reading that matches is enough. A reading matches in two cases:

- It has a segment `..`. Where that leads depends on the upstream, so it is not resolved.
- It ends with a login path, or a login path ends with it. If `/auth/login` is configured, `/v2/auth/login` and `/login`
  match as well, because an application with a `root_path` may answer under any of them.

A path that cannot be normalized matches too. A false match only counts the request as an attempt of its sender.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

MOST_DECODINGS: Final = 6
ASCII_MAX_CHARACTERS: Final = 2_048
OTHER_MAX_CHARACTERS: Final = 512
"""A text that is longer at any stage, or still changes after so many, cannot be normalized. This bounds the work."""

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
OVERRIDE_HEADERS: Final = frozenset({"x-http-method-override", "x-method-override", "x-http-method"})
TARGET_HEADERS: Final = frozenset({"x-original-url", "x-rewrite-url"})  # some servers take the target from these

_ORIGIN: Final = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?(?:[/\\]{2,}[^/\\]*)?", re.ASCII)
_PARAMETERS: Final = re.compile(r";[^/\\]*")
_REST: Final = re.compile(r"[;?#\0\r\n].*", re.DOTALL)
_PERCENT_U: Final = re.compile(r"%u([0-9a-fA-F]{4})")


class LoginPaths:
    """The configured login paths."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._logins = [_names(_segments(stage)) for path in paths for stage in _stages(path) if stage is not None]

    def is_attempt(self, method: str, target: str, headers: Iterable[tuple[str, str]]) -> bool:
        """Return whether a request is a login attempt. `target` is the undecoded target of the request line."""
        named = [(name.lower().replace("_", "-"), value) for name, value in headers]  # some servers equate the two
        if method in SAFE_METHODS and not _may_override(target.partition("?")[2], {name for name, _ in named}):
            return False
        targets = [target, *(value for name, value in named if name in TARGET_HEADERS)]
        return len(targets) > 1 + len(TARGET_HEADERS) or any(map(self.match, targets))

    def match(self, target: str) -> bool:
        """Return whether a target may lead to a login path, has a segment `..`, or cannot be normalized."""
        path = target.partition("?")[0]
        stages = (stage for whole in {path, _ORIGIN.sub("", path, count=1)} for stage in _stages(whole))
        return any(stage is None or self._stage_matches(stage) for stage in stages)

    def _stage_matches(self, path: str) -> bool:
        """Return whether the path matches as it is, cut where it may end, or without the parameters of its segments."""
        return any(map(self._reading_matches, {path, _REST.sub("", path), _PARAMETERS.sub("", path)}))

    def _reading_matches(self, path: str) -> bool:
        segments = _segments(path)
        names = _names(segments)
        climbs = any(len(segment) > 1 and not segment.strip(".") for segment in segments)  # Windows drops further dots
        return climbs or any(names[-len(one) :] == one or one[-len(names) :] == names for one in self._logins)


def _may_override(query: str, headers: set[str]) -> bool:
    """Return whether a request may override its method. True also for a query that cannot be normalized."""
    named = any(stage is None or "_method" in stage.lower() for stage in _stages(query))
    return named or not OVERRIDE_HEADERS.isdisjoint(headers)


def _stages(text: str) -> Iterator[str | None]:
    """Yield the text and its further decodings until nothing changes; end with None if it cannot be normalized."""
    for _ in range(MOST_DECODINGS):
        if len(text) > (ASCII_MAX_CHARACTERS if text.isascii() else OTHER_MAX_CHARACTERS):
            break
        yield text
        try:
            before, text = text, _decoded(text)
        except UnicodeError:
            break
        if text == before:
            return
    yield None


def _decoded(text: str) -> str:
    """Return the text decoded once more, or folded if it has no escape left. Raises UnicodeError if it is not UTF-8."""
    text.encode()
    decoded = unquote(_PERCENT_U.sub(lambda found: chr(int(found[1], 16)), text), errors="strict")
    return _folded(text) if decoded == text else decoded


def _segments(path: str) -> list[str]:
    return [_folded(segment) for segment in path.replace("\\", "/").split("/")]


def _folded(text: str) -> str:
    """Return the text in lower case, without marks, white space, invisible characters and special widths."""
    return "".join(map(_folded_character, text))


@lru_cache(maxsize=4_096)
def _folded_character(character: str) -> str:
    wide = unicodedata.normalize("NFKD", character.upper())  # upper case first: that of the dotless i is I
    return "".join(each for each in wide if unicodedata.category(each)[0] not in "MCZ").lower()


def _names(segments: Iterable[str]) -> list[str]:
    """Return the segments that are not empty, without trailing dots. The last one also loses its suffix.

    Rails routes `login.json` as it does `login` (`(.:format)`).
    """
    kept = [name for segment in segments if (name := segment.rstrip("."))]
    return [*kept[:-1], *(last.rpartition(".")[0] or last for last in kept[-1:])]
