"""Reads variables by the name behind a prefix, and remembers how each reads; the only reader of the environment.

A wrong value raises `SettingsError`, one line that names the variable. It knows no setting by name.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from revocation_service.errors import SettingsError

S = TypeVar("S")

_Mask = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Shown:
    """One setting in force, as `check-config` prints it."""

    name: str
    value: str
    given: bool


@dataclass(frozen=True, slots=True)
class Loaded(Generic[S]):
    """The settings, how they read, and what was set to no effect."""

    settings: S
    shown: tuple[Shown, ...]
    unknown: tuple[str, ...]


def describe(loaded: Loaded[S]) -> Iterator[str]:
    """The settings in force, a line each, secrets masked."""
    for shown in loaded.shown:
        yield f"{shown.name}={shown.value}{'' if shown.given else '  (default)'}"


def process_environment() -> Mapping[str, str]:
    """The process's own variables."""
    return os.environ


class Reader:
    """Takes variables from an environment by the name behind the prefix, and remembers how each reads."""

    def __init__(self, prefix: str, environment: Mapping[str, str], *, known: frozenset[str] = frozenset()) -> None:
        self.prefix = prefix
        self.environment = environment
        self.shown: list[Shown] = []
        self._known: set[str] = set(known)

    def unknown(self) -> tuple[str, ...]:
        """Variables with our prefix that mean nothing: misspelt, most likely."""
        ours = (name for name in self.environment if name.startswith(self.prefix))
        return tuple(sorted(name for name in ours if name not in self._known))

    def wrong(self, name: str, why: str) -> SettingsError:
        """The error of a variable: one line that names it."""
        return SettingsError(f"{self.prefix}{name} {why}")

    def text(self, name: str, default: str, *, empty: bool = True) -> str:
        """A variable as it stands, white space round it dropped."""
        text = self._take(name, default, lambda value: value)
        if not text and not empty:
            raise self.wrong(name, "is set but empty; give it a value or unset it")
        return text

    def unprefixed(self, name: str) -> str | None:
        """A variable that other programs know too, under this name."""
        value = self.environment.get(name) or None
        self.shown.append(Shown(name, value or "", value is not None))
        return value

    def number(self, name: str, default: float, *, least: float, most: float, whole: bool = False) -> float:
        """A number within bounds."""
        text = self._take(name, f"{default:g}" if default < 1e5 else str(default), lambda value: value)
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            kind = "a whole number" if whole else "a number"
            raise self.wrong(name, f"must be {kind} from {least:,g} to {most:,g}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """True or false."""
        text = self._take(name, str(default).lower(), lambda value: value).lower()
        if text not in {"true", "false", "1", "0"}:
            raise self.wrong(name, "must be true or false")
        return text in {"true", "1"}

    def choice(self, name: str, default: str, known: tuple[str, ...]) -> str:
        """One of several words."""
        text = self._take(name, default, lambda value: value)
        if text not in known:
            raise self.wrong(name, f"must be one of {', '.join(known)}")
        return text

    def secret(self, name: str, default: str | None = None, mask: _Mask | None = None) -> str | None:
        """A variable that may stand in a file instead, named by NAME_FILE; what is set must not be empty."""
        self._known.add(f"{self.prefix}{name}_FILE")
        text = self._from_file(name)
        if text is None:
            text = self.environment.get(self.prefix + name)
        self._remember(name, text, default, mask or (lambda _secret: "***"))
        if text is not None and not text.strip():
            raise self.wrong(name, "is set but empty; give it a value or unset it")
        return default if text is None else text.strip()

    def _from_file(self, name: str) -> str | None:
        variable = f"{self.prefix}{name}"
        path = self.environment.get(f"{variable}_FILE")
        if path is None:
            return None
        if variable in self.environment:
            raise SettingsError(f"{variable} and {variable}_FILE are both set; keep one")
        try:
            return Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "not text"
            raise SettingsError(f"{variable}_FILE names {path}, which cannot be read: {why}") from None

    def _take(self, name: str, default: str, mask: _Mask) -> str:
        given = self.environment.get(self.prefix + name)
        self._remember(name, given, default, mask)
        return default if given is None else given.strip()

    def _remember(self, name: str, given: str | None, default: str | None, mask: _Mask) -> None:
        self._known.add(self.prefix + name)
        value = default if given is None else mask(given)
        self.shown.append(Shown(self.prefix + name, value or "", given is not None))


def mask_url(url: str) -> str:
    """A URL with its user, password and query hidden."""
    scheme, separator, rest = url.partition("://")
    address, query, options = rest.partition("?")
    _credentials, at, host = address.rpartition("@")
    if "@" in options:  # it may be a password that holds a question mark
        return f"{scheme}{separator}***"
    return f"{scheme}{separator}{'***@' if at else ''}{host}{'?***' if query else ''}"
