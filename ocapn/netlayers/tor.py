"""Tor: the names of onion services (rend-spec-v3), and its control port (control-spec), at which one is added."""

from __future__ import annotations

import binascii
import os
import re
import secrets
from base64 import b32decode, b32encode, b64encode
from hashlib import sha3_256, sha512
from hmac import compare_digest, digest
from typing import Final, final

import attrs
import trio

from ocapn.crypto import KEY, Identity
from ocapn.errors import BadLocator, ConnectFailed, shown
from ocapn.netlayers.noise import parse_address
from ocapn.netlayers.tcp import connect

#: Bytes of a line that Tor may say, and lines of one reply. PROTOCOLINFO has four, of some hundred bytes.
MOST_LINE: Final = 4096
MOST_LINES: Final = 64
#: How long it may take until a service is added, seconds: Tor is near, and says all it has to at once.
PATIENCE: Final = 10.0

_VERSION: Final = b"\x03"
#: Characters of the id of a service.
_ID: Final = 56
_COOKIE: Final = 32
_REPLY: Final = re.compile(rb"([0-9]{3})([ +-])(.*)\Z", re.DOTALL)
_AUTH: Final = re.compile(r'AUTH METHODS=([A-Z,]+)(?: COOKIEFILE="((?:[^"\\]|\\.)*)")?')
_CHALLENGE: Final = re.compile(r"AUTHCHALLENGE SERVERHASH=([0-9A-Fa-f]{64}) SERVERNONCE=([0-9A-Fa-f]{64})\Z")
_ESCAPE: Final = re.compile(r"\\(?:([0-7]{1,3})|(.))", re.DOTALL)
_LETTERS: Final = {"n": "\n", "r": "\r", "t": "\t"}
#: What is left out where Tor's words are shown: it might be a key, and no other word is as long.
_LONG: Final = re.compile(r"\S{24,}")


# Names


def service_id(public_key: bytes) -> str:
    """The name, without `.onion`, of the service that has an Ed25519 key: 56 characters."""
    return b32encode(public_key + _checksum(public_key) + _VERSION).decode().lower()


def _checksum(public_key: bytes) -> bytes:
    return sha3_256(b".onion checksum" + public_key + _VERSION).digest()[:2]


def check_service_id(text: str) -> None:
    """Raises BadLocator for what names no service of version 3."""
    if len(text) == _ID and text.isascii():
        try:
            key = b32decode(text.upper())[:KEY]
        except binascii.Error:
            pass
        else:
            if service_id(key) == text:
                return
    raise BadLocator(
        f"the designator is no onion service of version 3: {_ID} letters a to z and digits 2 to 7, with a checksum"
    )


def expanded(seed: bytes) -> bytes:
    """The Ed25519 key of a seed as Tor has it: the scalar, and what nonces are made of (RFC 8032, 5.1.5)."""
    key = bytearray(sha512(seed).digest())
    key[0] &= 248
    key[31] = key[31] & 127 | 64
    return bytes(key)


# Replies


class TorError(Exception):
    """Tor refuses, or says what it never would, or is gone. The text has no secret in it. Never leaves the package."""


@attrs.frozen
class Reply:
    """`status` is that of the last line, of which there is at least one."""

    status: int
    lines: list[str]


@final
class Replies:
    """Cuts what comes from a control port into replies (control-spec, 2.3)."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._lines: list[str] = []
        self._count = 0
        self._in_data = False

    def feed(self, data: bytes) -> None:
        self._data += data

    def take(self) -> Reply | None:
        """The next that is whole. Raises TorError."""
        while True:
            end = self._data.find(b"\r\n", 0, MOST_LINE + 2)
            if end < 0:
                if len(self._data) >= MOST_LINE + 2:
                    raise TorError(f"it says a line of more than {MOST_LINE:,} bytes")
                return None
            line = bytes(self._data[:end])
            del self._data[: end + 2]
            self._count += 1
            if self._count > MOST_LINES:
                raise TorError(f"it says more than {MOST_LINES} lines at once")
            reply = self._line(line)
            if reply is not None:
                return reply

    def _line(self, line: bytes) -> Reply | None:
        if self._in_data:
            self._in_data = line != b"."
            return None
        match = _REPLY.match(line)
        if match is None:
            raise TorError("that is no control port of Tor")
        status, mark, text = match.groups()
        self._lines.append(text.decode("latin-1"))
        self._in_data = mark == b"+"
        if mark != b" ":
            return None
        lines, self._lines, self._count = self._lines, [], 0
        return Reply(int(status), lines)


# The service


@final
class Service:
    """An onion service, there for as long as this connection to Tor's control port."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._replies = Replies()

    async def add(self, identity: Identity, password: str | None, port: int, target: int) -> None:
        """Adds the one that has this key, whose `port` is `target` on this machine. Raises TorError."""
        await self._authenticate(password)
        key = b64encode(expanded(identity.seed)).decode()
        reply = await self._ask(f"ADD_ONION ED25519-V3:{key} Port={port},127.0.0.1:{target}")
        if reply.status != 250:
            raise TorError(f"it does not add the service: {reply.status} {_words(reply)}")
        if f"ServiceID={service_id(identity.public_key)}" not in reply.lines:
            raise TorError("it has added another service than it was asked for")

    async def _authenticate(self, password: str | None) -> None:
        methods, path = _methods(await self._ask("PROTOCOLINFO 1"))
        what = "password"
        if "NULL" in methods:
            proof = b""
        elif password is not None:
            if "HASHEDPASSWORD" not in methods:
                raise TorError("it takes no password: put HashedControlPassword in torrc, or give none")
            proof = password.encode()
        elif path is not None and "SAFECOOKIE" in methods:  # never COOKIE: it would show what is in the file
            what = f"cookie in {shown(path)}"
            proof = await self._challenge(_cookie(path))
        else:
            raise TorError("it wants a password: give it, or put CookieAuthentication 1 in torrc")
        reply = await self._ask(f"AUTHENTICATE {proof.hex()}".rstrip())
        if reply.status != 250:
            raise TorError(f"it does not take the {what}")

    async def _challenge(self, cookie: bytes) -> bytes:
        """What proves that this side has the cookie, once the other has proved it (control-spec, AUTHCHALLENGE)."""
        ours = secrets.token_bytes(32)
        reply = await self._ask(f"AUTHCHALLENGE SAFECOOKIE {ours.hex()}")
        match = _CHALLENGE.match(reply.lines[0])
        if match is None:
            raise TorError("it does not answer AUTHCHALLENGE")
        theirs, nonce = bytes.fromhex(match[1]), bytes.fromhex(match[2])
        both = cookie + ours + nonce
        if not compare_digest(
            theirs, digest(b"Tor safe cookie authentication server-to-controller hash", both, "sha256")
        ):
            raise TorError(
                "it does not know its own cookie: something else is there, or the file is of before"
            )
        return digest(b"Tor safe cookie authentication controller-to-server hash", both, "sha256")

    async def _ask(self, command: str) -> Reply:
        try:
            await self._stream.send_all(command.encode() + b"\r\n")
            while (reply := self._replies.take()) is None:
                data = await self._stream.receive_some(MOST_LINE)
                if not data:
                    raise TorError("it ends the connection")
                self._replies.feed(bytes(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise TorError("it ends the connection") from error
        return reply

    async def gone(self) -> None:
        """Returns when the service is gone: at the end of the connection, or when it is closed here."""
        try:
            while await self._stream.receive_some(MOST_LINE):
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


def _words(reply: Reply) -> str:
    return shown(_LONG.sub("…", reply.lines[-1]))


def _methods(reply: Reply) -> tuple[set[str], str | None]:
    """How to authenticate, and the file with the cookie. Raises TorError."""
    for line in reply.lines if reply.status == 250 else ():
        match = _AUTH.match(line)
        if match is not None:
            return set(match[1].split(",")), match[2] and _unquoted(match[2])
    raise TorError("it does not say how to authenticate (PROTOCOLINFO)")


def _unquoted(text: str) -> str:
    """The path that is between quotes, in which `\\` begins an escape of C."""

    def meant(match: re.Match[str]) -> str:
        octal, letter = match.groups()
        return chr(int(octal, 8) & 255) if octal else _LETTERS.get(letter, letter)

    return os.fsdecode(_ESCAPE.sub(meant, text).encode("latin-1"))


def _cookie(path: str) -> bytes:
    """What the file holds. Raises TorError, also for a file that is something else: Tor is to learn nothing of it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe is not waited for
        try:
            cookie = os.read(fd, _COOKIE + 1)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:  # a path with NUL
        why = error.strerror if isinstance(error, OSError) else "no path"
        raise TorError(
            f"its cookie {shown(path)} cannot be read: {why}; be in the group of Tor, or give a password"
        ) from error
    if len(cookie) != _COOKIE:
        raise TorError(f"its cookie {shown(path)} has not {_COOKIE} bytes: it is another file")
    return cookie


async def add_service(
    control: str, password: str | None, identity: Identity, port: int, target: int
) -> Service:
    """Adds a service at the control port `control`: `host:port`, or the path of a socket file. Raises ConnectFailed."""
    with trio.move_on_after(PATIENCE):
        try:
            stream = await _reach(control)
        except OSError as error:
            raise ConnectFailed(
                f"no Tor is at the control port {control}: {last_words(error)}; start Tor with ControlPort 9051 "
                "and CookieAuthentication 1 in torrc, or say where it is: control=HOST:PORT or a path"
            ) from error
        service = Service(stream)
        try:
            await service.add(identity, password, port, target)
        except TorError as error:
            await service.aclose()
            raise ConnectFailed(f"no onion service by the Tor at {control}: {error}") from error
        except BaseException:
            await service.aclose()
            raise
        return service
    raise ConnectFailed(f"no onion service by the Tor at {control}: it does not answer within {PATIENCE:g} s")


async def _reach(control: str) -> trio.SocketStream:
    if is_path(control):
        return await trio.open_unix_socket(control)
    return await connect(*parse_address(control))


def last_words(error: BaseException) -> str:
    """What the operating system says, without the address that trio puts before it."""
    said = isinstance(error, OSError) and error.strerror
    return str(said or error).rpartition(": ")[2]


def is_path(control: str) -> bool:
    """Whether a control port is a socket file."""
    return "/" in control
