"""Read settings from environment variables. Nothing else in the service reads the environment.

A setting is declared once, as a field of a dataclass: `host: str = setting("REVOCATION_HOST", "127.0.0.1", filled)`.
`EnvReader.read` fills such a dataclass. A wrong value raises SettingsError, in one line that names the variable.
"""

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

from revocation_service.errors import SettingsError

S = TypeVar("S")
T = TypeVar("T")
N = TypeVar("N", int, float)

Parse = Callable[[str], T]
"""Turns a variable's text into its value. Raises ValueError("must be …"), without quoting a secret."""

EMPTY: Final = "is set but empty; give it a value or unset it"


@dataclass(frozen=True, slots=True)
class Loaded(Generic[S]):
    """The settings, a printable line for each (secrets masked), and variables with our prefix that name no setting."""

    settings: S
    shown: tuple[str, ...]
    unknown: tuple[str, ...]


def setting(variable: str, default: str, parse: Parse[T], mask: Parse[str] | None = None) -> T:
    """Declare a dataclass field that `EnvReader.read` takes from the environment. The default is parsed like a value.

    A setting with a `mask` is a secret. Reprs omit its value, and `check-config` masks it. The value may come from a
    file, and must not be empty.
    """
    metadata = {"setting": (variable, default, parse, mask)}
    declared: T = field(default=parse(default), repr=mask is None, metadata=metadata)
    return declared


class EnvReader:
    """Reads variables, and keeps a printable line for each."""

    def __init__(self, environment: Mapping[str, str] | None) -> None:
        self.environment = os.environ if environment is None else environment
        self._shown: list[str] = []
        self._known: set[str] = set()

    def read(self, kind: Callable[..., S], **given: Any) -> S:
        """Return an instance of the dataclass `kind`: its settings are read, and its other fields come from `given`."""
        for each in fields(cast("Any", kind)):
            if "setting" in each.metadata:
                given[each.name] = self.value(*each.metadata["setting"])
        return kind(**given)

    def value(self, variable: str, default: str, parse: Parse[T], mask: Parse[str] | None = None) -> T:
        """Return one setting, as `setting` declares it. Raises SettingsError."""
        text = self._text(variable, secret=mask is not None)
        shown = f"{default}  (default)" if text is None else (mask or str)(text)
        self._shown.append(f"{variable}={shown}")
        try:
            return parse(default if text is None else filled(text) if mask else text)
        except ValueError as error:
            raise SettingsError(f"{variable} {error}") from None

    def _text(self, variable: str, *, secret: bool) -> str | None:
        text, file = self.environment.get(variable), f"{variable}_FILE"
        self._known |= {variable, file} if secret else {variable}
        if secret and file in self.environment:
            if text is not None:
                raise SettingsError(f"{variable} and {file} are both set; keep one")
            path = self.environment[file]
            try:
                text = Path(path).read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else "not text"
                raise SettingsError(f"{file} names {path}, which cannot be read: {why}") from None
        return None if text is None else text.strip()

    def loaded(self, settings: S, prefix: str, *others: str) -> Loaded[S]:
        """Return the settings, a printable line for each, and the unknown variables.

        A variable is unknown if it has the prefix and was neither read nor named in `others`.
        """
        ours = {name for name in self.environment if name.startswith(prefix)}
        return Loaded(settings, tuple(sorted(self._shown)), tuple(sorted(ours - self._known - {*others})))


def number(kind: Callable[[str], N], least: float, most: float) -> Parse[N]:
    """Return a parser of int or float, within these bounds."""

    def parse(text: str) -> N:
        with suppress(ValueError):
            if least <= (value := kind(text)) <= most:
                return value
        raise ValueError(f"must be a {'whole ' if kind is int else ''}number from {least:,g} to {most:,g}")

    return parse


def flag(text: str) -> bool:
    """Parse true or false."""
    if text.lower() not in {"true", "false", "1", "0"}:
        raise ValueError("must be true or false")
    return text.lower() in {"true", "1"}


def one_of(*words: str) -> Parse[str]:
    """Return a parser that accepts these words only."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text

    return parse


def optional(parse: Parse[T]) -> Parse[T | None]:
    """Return a parser that turns an empty text into None."""
    return lambda text: parse(text) if text else None


def filled(text: str) -> str:
    """Parse any text that is not empty."""
    if not text:
        raise ValueError(EMPTY)
    return text


def hidden(_secret: str) -> str:
    """Mask all of a secret."""
    return "***"


def mask_url(url: str) -> str:
    """Mask the user, the password and the query of a URL."""
    if re.search(r"\?.*@", url, re.DOTALL):  # the question mark may be part of a password
        return f"{url.partition('://')[0]}://***"
    return re.sub(r"\?.*", "?***", re.sub(r"//.*@", "//***@", url, flags=re.DOTALL), flags=re.DOTALL)
