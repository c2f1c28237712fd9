"""`ocapn locator`: what a URI says, part by part."""

from __future__ import annotations

import argparse
from typing import Final

import attrs

from ocapn.cli.command import Command
from ocapn.cli.exits import ExitCode
from ocapn.cli.output import printable
from ocapn.cli.uris import URI_HELP, read_uri
from ocapn.cli.wires import dialling
from ocapn.crypto import public_key_of
from ocapn.errors import BadLocator
from ocapn.model.locators import PeerLocator, SturdyRef, parse_uri
from ocapn.netlayers.tor import check_service_id

_DESCRIPTION: Final = """
Explains an ocapn:// URI: whether it names a peer or an object, and what each part of it means.
Nothing is connected to. The swiss number of a sturdyref, its secret, is not shown unless asked.
"""

_EPILOG: Final = """
Example:
  $ ocapn locator 'ocapn://hello-of-ann.tcp-testing-only?host=127.0.0.1&port=4711'
"""


@attrs.frozen
class _Transport:
    means: str
    secure: str
    designator: str = "a name that the peer gave itself; nothing proves it"
    #: Hints that dialling needs.
    needs: tuple[str, ...] = ()


_SERVICE: Final = "the id of the onion service, version 3: the connection proves it"
_KEY: Final = "the peer's Ed25519 key, in base32: the connection proves it"
_TRANSPORTS: Final = {
    "tcp-testing-only": _Transport(
        "TCP in clear, for tests and loopback",
        "no: nothing is encrypted, nobody is authenticated",
        needs=("host", "port"),
    ),
    "unix": _Transport(
        "a socket file on this machine",
        "yes, on this machine: the file's mode says who may connect",
        needs=("path",),
    ),
    "websocket": _Transport(
        "WebSocket, which crosses proxies and browsers",
        "the peer is authenticated, who dials it is not; encrypted if the url is wss://",
        designator=_KEY,
        needs=("url",),
    ),
    "onion": _Transport(
        "a Tor onion service",
        "yes: encrypted, the peer is authenticated and hidden; who dials it is not authenticated",
        designator=_SERVICE,
    ),
    "noise": _Transport(
        "Noise XX over TCP",
        "yes: encrypted, both sides are authenticated",
        designator=_KEY,
        needs=("addr",),
    ),
}
_UNKNOWN: Final = _Transport("not known to this version of ocapn", "nothing is known of it")

_HINTS: Final = {
    ("tcp-testing-only", "host"): "the address to dial",
    ("tcp-testing-only", "port"): "the TCP port to dial",
    ("tcp-testing-only", "framing"): "how messages are told apart",
    ("unix", "path"): "the socket file",
    ("websocket", "url"): "where to dial",
    ("noise", "addr"): "the addresses to dial",
    ("noise", "relay"): "who passes messages on if it cannot be dialled",
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", metavar="URI", help=URI_HELP)
    parser.add_argument("--secrets", action="store_true", help="shows the swiss number, in hexadecimal")


def _run(given: argparse.Namespace) -> None:
    found = parse_uri(read_uri(given.uri))
    for line in explain(found, secrets=given.secrets):
        print(line)


def explain(found: PeerLocator | SturdyRef, *, secrets: bool) -> list[str]:
    """The lines that the command prints."""
    peer = found.peer if isinstance(found, SturdyRef) else found
    transport = _TRANSPORTS.get(peer.transport, _UNKNOWN)
    if isinstance(found, SturdyRef):
        title = (
            "A sturdyref: it names an object of a peer, and who knows it may use the object. Keep it secret."
        )
    else:
        title = "A peer locator: it names a peer and says how to reach it. It is no secret."
    about = transport.designator
    if about is _KEY:
        try:
            public_key_of(peer.designator)
        except BadLocator:
            about = "wrong: it should be an Ed25519 key in base32, 52 of a-z and 2-7"
    elif about is _SERVICE:
        try:
            check_service_id(peer.designator)
        except BadLocator:
            about = "wrong: it should be the id of an onion service, 56 of a-z and 2-7 with a checksum"
    rows = [
        ("designator", peer.designator, about),
        ("transport", peer.transport, transport.means),
        ("secure", transport.secure, ""),
    ]
    for name, value in peer.hints.items():
        means = _HINTS.get((peer.transport, name), "not known to this transport")
        rows.append((f"hint {name}", value or '""', means))
    for name in transport.needs:
        if name not in peer.hints:
            rows.append((f"hint {name}", "missing", "without it the peer cannot be dialled"))
    if isinstance(found, SturdyRef):
        size = f"{len(found.swiss)} byte{'s' * (len(found.swiss) != 1)}"
        if secrets:
            rows.append(("swiss number", found.swiss.hex(), f"{size}, in hexadecimal: the secret"))
        else:
            rows.append(("swiss number", size, "the secret, hidden; --secrets shows it"))
    if peer.transport not in {netlayer.transport for netlayer in dialling()}:
        rows.append(("note", f"the ocapn command cannot dial {peer.transport} peers yet", ""))
    width = max(len(printable(name)) for name, _, _ in rows)
    return [
        title,
        *(
            f"  {printable(name):<{width}}  {printable(value)}{means and f'  ({means})'}"
            for name, value, means in rows
        ),
    ]


COMMAND: Final = Command(
    name="locator",
    summary="explain an ocapn:// URI part by part",
    usage="URI|@FILE [--secrets]",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    codes=(ExitCode.MALFORMED, ExitCode.FILE, ExitCode.PIPE),
    add_arguments=_add_arguments,
    run=_run,
)
