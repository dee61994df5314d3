"""Which accounts a login names, by whatever its body may be taken for. Pure, apart from the bounded read of the body.

Nobody knows how the upstream reads a body: so every reading is tried, and every name found is one that is attempted.
A name is kept as a keyed hash, never as itself.
"""

import base64
import binascii
import hashlib
import hmac
import json
import quopri
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from email.message import Message
from email.utils import collapse_rfc2231_value
from itertools import islice, zip_longest
from json.decoder import scanstring  # type: ignore[attr-defined]  # missing in its stub
from typing import Final
from urllib.parse import parse_qsl

from aiohttp import web

BODY_MAX_BYTES: Final = 8 * 1024
"""The longest body of a login, where the account limit is on."""

MOST_NAMES: Final = 8
MOST_SPELLINGS: Final = 64
MOST_FIELDS: Final = 250
MOST_PARTS: Final = 25
"""What has more of them than that is no login. So the work is bounded, too."""

BUFFERED_BODY: Final = web.RequestKey("buffered_body", bytes)
"""The body of a login that has been read already: this is what goes to the upstream."""

_FIELDS_TEXT: Final = """
account accountid accountname accountnumber customerid customernumber email emailaddress handle identifier identity
login loginemail loginid loginname mail member memberid membernumber mobile mobilenumber nickname phone phonenumber
principal screenname uid uname upn user useremail userid userlogin username userprincipalname usr usrname
"""
NAME_FIELDS: Final = frozenset(_FIELDS_TEXT.split())
"""What applications call the field with the account's name, without case and punctuation."""

_HOLDERS: Final = frozenset({"eq", "equals", "exact", "in", "is", "like", "value"})
"""Below a name's field, what stands under one of them, under a number or an operator (`$eq`), is that name still."""

_NAME_MAX_CHARACTERS: Final = 512
_PART_MAX_BYTES: Final = 4 * _NAME_MAX_CHARACTERS
_HASH_CHARACTERS: Final = 32

_PUNCTUATION: Final = re.compile(r"[\W_]+")
_DROPPED_CATEGORIES: Final = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
_CHARSET: Final = re.compile(r"charset\s*=\s*[\"']?([\w.:-]{1,40})", re.ASCII | re.IGNORECASE)
_CHARSETS: Final = re.compile(
    r"(utf|ascii|iso|latin|cp|windows|koi8|mac|shift|euc|gb|big5|hz|johab|ptcp|kz|tis|hp).*", re.ASCII
)
"""The families of encodings that a login may name; the others of Python's are no charsets, or slow on purpose."""

_JSON_KEY: Final = re.compile(r"(?=\"((?:[^\"\\]{1,128}+|\\.){1,64}+)\"\s*:\s*(\"?))")
_JSON_WORD: Final = re.compile(r"[^\s,}\]\[{]{0,512}")
_JSON_STRING: Final = re.compile(r"\"((?:[^\"\\]{1,512}+|\\.){0,512}+)\"")

_DISPOSITION: Final = re.compile(rb"content-disposition\s*:((?:[^\r\n]|\r?\n[ \t]|\r[ \t]){0,2000})", re.IGNORECASE)
_BLANK_LINE: Final = re.compile(rb"\n\r?\n|\r\r")
_NEXT_PART: Final = re.compile(rb"[\r\n]--|\Z")
_PART_NAME: Final = re.compile(rb"(?<![a-z])name\s*=\s*(?:\"((?:\\.|[^\"\\]){0,256})\"|([^;\s]{1,256}))", re.IGNORECASE)
_PART_ENCODING: Final = re.compile(rb"content-transfer-encoding\s*:\s*(base64|quoted-printable)", re.IGNORECASE)


class Ambiguous(Exception):
    """A login that names more accounts, or has more fields, than any does; nobody knows which of them is meant."""


class AccountNames:
    """The names of accounts, hashed with one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def hashes(
        self, body: bytes, query: str = "", content_type: str = "", authorization: Iterable[str] = ()
    ) -> frozenset[str]:
        """The hashes of all the names that a login may be about.

        Raises Ambiguous.
        """
        spellings: set[str] = set()
        for name in _names(body, query, content_type, authorization):
            spellings.add(name.strip()[:_NAME_MAX_CHARACTERS])
            if len(spellings) > MOST_SPELLINGS:
                raise Ambiguous
        names = {fold(name) for name in spellings} - {""}
        if len(names) > MOST_NAMES:
            raise Ambiguous
        return frozenset(map(self._hash, names))

    def _hash(self, name: str) -> str:
        return hmac.new(self._key, name.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:_HASH_CHARACTERS]


def fold(name: str) -> str:
    """What the spellings of one name have in common: form (NFKC), case, and no space or invisible characters."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name.strip()[:_NAME_MAX_CHARACTERS]).casefold())
    return "".join(each for each in plain if unicodedata.category(each) not in _DROPPED_CATEGORIES)


async def read_body(request: web.Request) -> bytes | None:
    """The body of a request; None where it is longer than a login's may be."""
    if (request.content_length or 0) > BODY_MAX_BYTES:
        return None
    body = bytearray()
    while piece := await request.content.read(BODY_MAX_BYTES + 1 - len(body)):
        body += piece
        if len(body) > BODY_MAX_BYTES:
            return None
    return bytes(body)


def _is_name_field(name: str, *, below_name: bool = False) -> bool:
    """Whether a field holds a name, also one that is called `user[email]`, `form.user_name` or `username[0]`.

    One that is but a number, or an operator, holds what the field above it does.
    """
    parts = [part for part in re.split(r"[\[\].:/]+", name.casefold()) if part]
    while parts and _is_holder(parts[-1]):
        del parts[-1]
    if not parts:
        return below_name
    return any(_PUNCTUATION.sub("", part) in NAME_FIELDS for part in ("".join(parts), parts[-1]))


def _is_holder(part: str) -> bool:
    plain = _PUNCTUATION.sub("", part)
    return part.startswith("$") or not plain or plain.isdecimal() or plain in _HOLDERS


def _names(body: bytes, query: str, content_type: str, authorization: Iterable[str]) -> Iterator[str]:
    for credentials in authorization:
        yield from _basic_names(credentials)
    yield from _form_names(query)
    for text in set(_texts(body, content_type)):
        yield from _form_names(text)
        yield from _json_names(text)
    yield from _part_names(body, content_type)


def _texts(octets: bytes, content_type: str) -> Iterator[str]:
    """What octets may mean: UTF-8, Latin-1 as some frameworks read forms, what JSON detects, what the type declares."""
    declared = [found for found in _CHARSET.findall(content_type) if _CHARSETS.fullmatch(found.lower())]
    for charset in ("utf-8-sig", "latin-1", json.detect_encoding(octets), *declared[:2]):
        try:
            yield octets.decode(charset, "replace").removeprefix("\ufeff")
        except (LookupError, ValueError):
            continue


def _form_names(text: str) -> Iterator[str]:
    """The names in a form, whether `;` separates its fields too or not."""
    for form in {text, text.replace(";", "&")}:
        for encoding in ("utf-8", "latin-1"):
            try:
                fields = parse_qsl(form, True, False, encoding, "replace", MOST_FIELDS)
            except ValueError:
                raise Ambiguous from None
            yield from (value for field, value in fields if _is_name_field(field))


def _json_names(text: str) -> Iterator[str]:
    """The names in all objects, also in members whose own name stands there twice."""
    decoder = json.JSONDecoder(object_pairs_hook=tuple, parse_int=str, parse_float=str, strict=False)
    try:
        document = decoder.decode(text)
    except (ValueError, RecursionError):
        return _json_like_names(text)
    return _names_below(document)


def _names_below(document: object) -> Iterator[str]:
    """The names in what was JSON: a list is one there, an object a tuple of pairs."""
    unread = [(document, False)]
    while unread:
        value, named = unread.pop()
        if isinstance(value, list):
            unread += [(each, named) for each in value]
        elif isinstance(value, tuple):
            unread += [(each, _is_name_field(field, below_name=named)) for field, each in value]
        elif named and isinstance(value, str):
            yield value


def _json_like_names(text: str) -> Iterator[str]:
    """What looks like a member with the name of an account, for what a more lenient parser takes for JSON."""
    members = list(islice(_JSON_KEY.finditer(text), MOST_FIELDS + 1))
    if len(members) > MOST_FIELDS:
        raise Ambiguous
    named = False
    for found, following in zip_longest(members, members[1:]):
        end = len(text) if following is None else following.start()
        named = _is_name_field(_json_string(found[1] + '"', 0), below_name=named)
        if named and found[2]:
            yield _json_string(text, found.end(2))
        elif named:
            yield _JSON_WORD.match(text, found.end(2))[0]  # type: ignore[index]
            yield from (_json_string(each[1] + '"', 0) for each in _JSON_STRING.finditer(text, found.end(2), end))


def _json_string(text: str, start: int) -> str:
    """The string whose first character stands there; as much as there is of it where it is malformed."""
    try:
        return str(scanstring(text, start, False)[0])
    except ValueError:
        return text[start:].partition('"')[0]


def _part_names(body: bytes, content_type: str) -> Iterator[str]:
    """The names in a multipart body, whatever its boundary: a value begins behind the blank line after its field's."""
    for number, disposition in enumerate(_DISPOSITION.finditer(body)):
        if number >= MOST_PARTS:
            raise Ambiguous
        is_name = any(map(_is_name_field, _part_fields(disposition[1])))
        blank = _BLANK_LINE.search(body, disposition.start()) if is_name else None
        if blank is not None:
            end = _NEXT_PART.search(body, blank.end() - 1)
            head = body[max(disposition.start() - 1_000, 0) : blank.start()]
            for value in _part_values(head, body[blank.end() : end and end.start()][:_PART_MAX_BYTES]):
                yield from {*_texts(value, content_type), *_texts(value, head.decode("latin-1"))}


def _part_fields(disposition: bytes) -> Iterator[str]:
    """The field of a part, also where it is encoded or in pieces (RFC 2231)."""
    for quoted, token in _PART_NAME.findall(disposition):
        yield (quoted or token).decode("utf-8", "replace")
    message = Message()
    message["content-type"] = "x/y;" + re.sub(r"[\r\n]+", " ", disposition.decode("utf-8", "replace"))
    for name, value in message.get_params([]):
        if name.casefold().startswith("name"):
            yield collapse_rfc2231_value(value)


def _part_values(head: bytes, value: bytes) -> Sequence[bytes]:
    encoding = _PART_ENCODING.search(head)
    if not encoding:
        return [value]
    return [value, _from_base64(value) if encoding[1].lower() == b"base64" else quopri.decodestring(value)]


def _basic_names(authorization: str) -> Iterator[str]:
    """The user of HTTP Basic authentication (RFC 7617)."""
    scheme, _, credentials = authorization.strip().partition(" ")
    if scheme.casefold() == "basic":
        for text in _texts(_from_base64(credentials.encode("utf-8", "replace")), ""):
            yield text.partition(":")[0]


def _from_base64(encoded: bytes) -> bytes:
    """What can be decoded, padded or not, in either alphabet."""
    kept = re.sub(rb"[^A-Za-z0-9+/]", b"", encoded.translate(bytes.maketrans(b"-_", b"+/")))
    try:
        return base64.b64decode(kept + b"=" * (-len(kept) % 4))
    except binascii.Error:
        return b""
