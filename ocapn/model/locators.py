"""Peer locators and sturdyrefs, as values and as URIs (Locators specification)."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from types import MappingProxyType
from typing import final
from urllib.parse import parse_qsl, quote, unquote, unquote_to_bytes, urlencode

from ocapn.errors import BadLocator

#: Transports whose URIs write swiss numbers in base64url without padding, as deployed peers do.
_BASE64_SWISS = frozenset({"websocket", "onion"})
_TRANSPORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\Z")
_NO_HINTS: Mapping[str, str] = MappingProxyType({})


def _check_text(what: str, text: object) -> str:
    if not isinstance(text, str):
        raise BadLocator(f"{what} must be a string, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadLocator(f"{what} holds a surrogate, which is not text") from None
    return text


@final
class PeerLocator:
    """Where a peer is: transport, designator, and hints on how to reach it.

    Two locators are equal when transport and designator are; hints never count (Locators specification).
    `wire` is the encoding that arrived, kept because signatures are over received bytes; None if the
    locator was made here.
    """

    __slots__ = ("designator", "hints", "transport", "wire")
    transport: str
    designator: str
    hints: Mapping[str, str]
    wire: bytes | None

    def __init__(
        self,
        transport: str,
        designator: str,
        hints: Mapping[str, str] | None = None,
        wire: bytes | None = None,
    ) -> None:
        transport = _check_text("a transport", transport)
        if not _TRANSPORT.match(transport):
            raise BadLocator(f"a transport is letters, digits, '-' and '_', not {transport!r}")
        if not _check_text("a designator", designator):
            raise BadLocator("a designator may not be empty")
        hints = hints or _NO_HINTS
        for key, value in hints.items():
            _check_text("a hint's name", key)
            _check_text(f"the hint {key!r}", value)
        set_ = object.__setattr__
        set_(self, "transport", transport)
        set_(self, "designator", designator)
        set_(self, "hints", MappingProxyType(dict(hints)))
        set_(self, "wire", wire)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a PeerLocator cannot be changed")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PeerLocator):
            return NotImplemented
        return self.transport == other.transport and self.designator == other.designator

    def __hash__(self) -> int:
        return hash((self.transport, self.designator))

    def __repr__(self) -> str:
        return f"PeerLocator({self.uri!r})"

    def __reduce__(self) -> tuple[type[PeerLocator], tuple[str, str, dict[str, str]]]:
        return PeerLocator, (self.transport, self.designator, dict(self.hints))

    @property
    def uri(self) -> str:
        """`ocapn://<designator>.<transport>?hint=value`."""
        return f"ocapn://{quote(self.designator, safe='')}.{self.transport}{self._query()}"

    def _query(self) -> str:
        return "?" + urlencode(self.hints, quote_via=quote) if self.hints else ""

    @classmethod
    def parse(cls, uri: str) -> PeerLocator:
        """The locator that `uri` writes. Raises BadLocator, also for a sturdyref's URI."""
        found = parse_uri(uri)
        if isinstance(found, SturdyRef):
            raise BadLocator("this URI is a sturdyref; a peer locator has no /s/ part")
        return found


@final
class SturdyRef:
    """A peer and the swiss number of one of its objects: who knows it may enliven it. Keep it secret.

    `repr` and `str` leave the swiss number out; `uri` has it. Equality is over the locator (without hints)
    and the bytes of the swiss number.
    """

    __slots__ = ("peer", "swiss")
    peer: PeerLocator
    swiss: bytes

    def __init__(self, peer: PeerLocator, swiss: bytes) -> None:
        if not isinstance(peer, PeerLocator):
            raise BadLocator(f"a sturdyref's peer is a PeerLocator, not {type(peer).__name__}")
        if not isinstance(swiss, bytes):
            raise BadLocator(f"a swiss number is bytes, not {type(swiss).__name__}")
        object.__setattr__(self, "peer", peer)
        object.__setattr__(self, "swiss", swiss)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a SturdyRef cannot be changed")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SturdyRef):
            return NotImplemented
        return self.peer == other.peer and self.swiss == other.swiss

    def __hash__(self) -> int:
        return hash((self.peer, self.swiss))

    def __repr__(self) -> str:
        return f"SturdyRef({self.peer.uri!r}, swiss hidden)"

    def __reduce__(self) -> tuple[type[SturdyRef], tuple[PeerLocator, bytes]]:
        return SturdyRef, (self.peer, self.swiss)

    @property
    def uri(self) -> str:
        """`ocapn://<designator>.<transport>/s/<swiss>?hint=value`: a secret."""
        peer = self.peer
        if peer.transport in _BASE64_SWISS:
            swiss = urlsafe_b64encode(self.swiss).rstrip(b"=").decode("ascii")
        else:
            swiss = quote(self.swiss, safe="")
        return f"ocapn://{quote(peer.designator, safe='')}.{peer.transport}/s/{swiss}{peer._query()}"

    @classmethod
    def parse(cls, uri: str) -> SturdyRef:
        """The sturdyref that `uri` writes. Raises BadLocator, whose text never holds the swiss number."""
        found = parse_uri(uri)
        if isinstance(found, PeerLocator):
            raise BadLocator("this URI names a peer, not an object: a sturdyref has /s/ and a swiss number")
        return found


def parse_uri(uri: str) -> PeerLocator | SturdyRef:
    """What an `ocapn:` URI writes: a peer locator, or a sturdyref if it has an `/s/` part.

    Raises BadLocator; the message names the part that is wrong, never a swiss number.
    """
    if not isinstance(uri, str):
        raise BadLocator(f"a URI is a str, not {type(uri).__name__}")
    _check_text("a URI", uri)
    scheme, separator, rest = uri.strip().partition("://")
    if not separator or scheme.lower() != "ocapn":
        raise BadLocator("an OCapN URI begins with ocapn://")
    rest, hash_mark, _ = rest.partition("#")
    if hash_mark:
        raise BadLocator("an OCapN URI has no fragment (#)")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    designator, dot, transport = authority.rpartition(".")
    if not dot:
        raise BadLocator("ocapn:// is followed by <designator>.<transport>; there is no dot")
    hints: dict[str, str] = {}
    if query:
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict")
        except (ValueError, UnicodeDecodeError):
            raise BadLocator("the hints after ? are not name=value pairs of UTF-8 text") from None
        for name, value in pairs:
            if name in hints:
                raise BadLocator(f"the hint {name!r} is given twice")
            hints[name] = value
    try:
        designator = unquote(designator, errors="strict")
    except UnicodeDecodeError:
        raise BadLocator("the designator is not UTF-8 text") from None
    locator = PeerLocator(transport, designator, hints)
    if not slash or not path:
        return locator
    if not path.startswith("s/"):
        raise BadLocator("after the peer comes nothing, or /s/ and a swiss number")
    return SturdyRef(locator, _parse_swiss(path[2:], transport))


def _parse_swiss(text: str, transport: str) -> bytes:
    if not text:
        raise BadLocator("the swiss number after /s/ is empty")
    if "/" in text:
        raise BadLocator("a swiss number holds no /; write it as %2F")
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise BadLocator("the swiss number has a % that two hexadecimal digits do not follow")
    swiss = unquote_to_bytes(text)
    if transport not in _BASE64_SWISS:
        return swiss
    if not re.fullmatch(rb"[A-Za-z0-9_-]+", swiss) or len(swiss) % 4 == 1:
        raise BadLocator(f"swiss numbers of {transport} peers are base64url without padding")
    return urlsafe_b64decode(swiss + b"=" * (-len(swiss) % 4))
