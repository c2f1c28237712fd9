"""`ocapn serve`: objects of a Python module, served under sturdyrefs."""

from __future__ import annotations

import argparse
import importlib
import os
import secrets
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from types import MappingProxyType
from typing import Any, Final, NoReturn

import attrs
import trio

from ocapn.cli import baggages, seals
from ocapn.cli.command import Command
from ocapn.cli.exits import ExitCode, Failure
from ocapn.cli.output import complain, debugging, logged
from ocapn.cli.signals import SIGNALS
from ocapn.cli.status import control_path
from ocapn.cli.uris import read_bytes
from ocapn.cli.wires import (
    DEFAULT,
    LISTEN_HELP,
    SOCKS_HELP,
    Asked,
    extra,
    limits_for,
    listening,
    traced,
    warn_of,
)
from ocapn.control import control_socket
from ocapn.errors import BadLocator, ConnectFailed
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.netlayers.base import Netlayer
from ocapn.netlayers.identity import identity_file
from ocapn.netlayers.noise import NoiseNetlayer, parse_address
from ocapn.netlayers.tcp import MOST_ADDRESSES
from ocapn.opening import open_peer
from ocapn.peer import Peer
from ocapn.references import Target, target

_DESCRIPTION: Final = """
Serves objects of a Python module until it is told to stop (Ctrl-C or SIGTERM). It prints a line
for each object, its name and its sturdyref: a URI with a secret in it. Who knows the sturdyref
may use the object, so keep what is printed as you keep a password.
"""

_EPILOG: Final = """
What can be exported:
  an ocapn.Target          an object with methods marked @ocapn.method
  a subclass of it         one object is made of it, without arguments
  a function               each message is a call of it, as with ocapn.target

Example:
  $ cat hello.py
  def hello(name):
      return f"Hello, {name}!"
  $ umask 077                              # what is in hello.ref is a secret
  $ ocapn serve --export hello=hello:hello > hello.ref &
  $ ocapn call @hello.ref - '"Ann"'
  'Hello, Ann!'

Sturdyrefs that stay valid when the server is started again, and objects that keep their state,
need a directory to be kept in; nothing is lost or done twice if the process is killed:
  $ cat count.py
  import attrs, durable, ocapn

  @durable.kind("count.counter")
  @attrs.define
  class Counter(ocapn.Target):
      value: int = 0

      @ocapn.method
      def add(self, n):
          self.value += n
          return self.value
  $ ocapn serve --export counter=count:Counter --baggage ~/counter > counter.ref &
  $ ocapn call @counter.ref add 2
  2
  $ kill -9 %1; ocapn serve --export counter=count:Counter --baggage ~/counter > counter.ref &
  $ ocapn call @counter.ref add 3
  5
In a baggage, an object whose class is a @durable.kind keeps its state, and references to it go
on. All others are made anew: their sturdyrefs stay valid, references to them break (ObjectLost).
'ocapn baggage --help' tells how to look into it.

A baggage that is made is sealed: what is in it is encrypted, with a key in the file DIR.key, which
is made too. That protects copies and backups of the directory, and a disk that is thrown away
without the key; it does not protect from somebody who reads the key file as well: --key-file puts
it elsewhere, --seal passphrase asks for a passphrase at each start, --seal none leaves all in
clear. A baggage that is there stays as it is: 'ocapn baggage' can seal, unseal and rotate.

Without a baggage, sturdyrefs that stay valid need all three of these:
  $ ocapn serve --export hello=hello:hello --swiss hello=@hello.swiss \\
          --identity hello.key --listen noise://127.0.0.1:4711
"""

#: In a baggage, the namespaces below this one are of this command: objects and swiss numbers by name, ports.
_SPACE: Final = "ocapn.serve"


@attrs.frozen
class _Export:
    name: str
    place: str
    #: Makes or finds the object; may run code of the module.
    make: Callable[[], Target]
    #: What it is or will be an instance of.
    cls: type[Target]
    #: From --swiss.
    swiss: bytes | None


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--export",
        action="append",
        required=True,
        metavar="NAME=MODULE:ATTRIBUTE",
        help="an object to serve and what to call it; the module is found from here. May be repeated",
    )
    parser.add_argument("--listen", action="append", metavar="URL", help=LISTEN_HELP)
    parser.add_argument(
        "--baggage",
        metavar="DIR",
        help="the directory where sessions, sturdyrefs and durable objects are kept, so that the next "
        "'ocapn serve' with it goes on where this one stops, however it stops; made if it is not there",
    )
    seals.add_arguments(parser)
    parser.add_argument(
        "--control",
        metavar="PATH",
        help="the socket file over which 'ocapn status' asks how this peer is; with --baggage DIR, DIR.control by "
        "default",
    )
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="modules",
        metavar="MODULE",
        help="a module that registers kinds of objects in the baggage, besides those of --export",
    )
    parser.add_argument(
        "--insecure-bind",
        action="store_true",
        help="allows tcp and ws on other than loopback addresses: anybody on the way can read and forge everything",
    )
    parser.add_argument(
        "--swiss",
        action="append",
        default=[],
        metavar="NAME=@FILE",
        help="the swiss number, the secret in the sturdyref of NAME, is what FILE holds, byte for byte; "
        "a file that is not there is made, with 32 random bytes and mode 0600",
    )
    parser.add_argument(
        "--designator",
        help="what the peer calls itself over tcp and unix, unique in the world; drawn at random by default",
    )
    parser.add_argument(
        "--identity",
        metavar="FILE",
        help="the key that the peer proves to have over noise, websocket and onion; a file that is not there is made, "
        "with mode 0600. By default the one in the baggage, or drawn at random, another for each. With one key for "
        "several, who finds the peer over noise knows its onion service",
    )
    parser.add_argument(
        "--advertise",
        action="append",
        default=[],
        metavar="PLACE",
        help="where others dial the peer, if not where it listens: HOST:PORT for noise, which may be repeated; the URL "
        "of a proxy, ws:// or wss://, for websocket",
    )
    parser.add_argument(
        "--relay",
        action="append",
        default=[],
        metavar="URI",
        help="the locator of a relay, as 'ocapn relay' prints it, through which the peer can be reached over noise "
        "too: --listen noise for a peer that nobody can dial. May be repeated",
    )
    parser.add_argument(
        "--tls-certificate",
        metavar="FILE",
        help="the certificate, PEM, with which a peer listens at wss://; or, of one that listens at ws://, that of its "
        "proxy, so that sessions survive their connections",
    )
    parser.add_argument(
        "--tls-key", metavar="FILE", help="the key of the certificate, if it is not in the same file"
    )
    parser.add_argument("--tor-socks", metavar="HOST:PORT", help=SOCKS_HELP)
    parser.add_argument(
        "--tor-control",
        metavar="HOST:PORT|PATH",
        help="the control port of Tor, or its socket file (default: 127.0.0.1:9051)",
    )
    parser.add_argument(
        "--tor-password-file",
        metavar="FILE",
        help="the password for the control port, in the first line, - for standard input; not needed where Tor's "
        "cookie can be read",
    )
    parser.add_argument(
        "--trace", action="store_true", help="shows every message on standard error, without swiss numbers"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="tells of sessions on standard error")


def _run(given: argparse.Namespace) -> None:
    urls = given.listen or [DEFAULT]
    asked = _asked(given, urls)
    netlayers = _netlayers(urls, asked)
    if given.identity is not None:  # which may be made now, as nothing is wrong with all else
        asked = attrs.evolve(asked, identity=identity_file(given.identity))
        netlayers = _netlayers(urls, asked)
    for url in urls:
        warn_of(url, asked)
    options = seals.asked(given)
    if given.baggage is None and options != seals.Asked():
        raise Failure(ExitCode.USAGE, "a seal is that of a baggage: --baggage is missing")
    swiss = _swiss(given.swiss)
    exports = _exports(given.export, swiss)
    for module in given.modules:
        _imported(module)
    with logged("ocapn serve", verbose=given.verbose):
        if given.baggage is None:
            SIGNALS.run(
                partial(_serve, traced(netlayers) if given.trace else netlayers, exports, given.control)
            )
        else:
            _run_kept(given, urls, asked, exports, options)


def _seal(path: str, options: seals.Asked) -> Any:
    """That of the baggage in a directory; as the options say, if there is none. Raises Failure."""
    baggages.named(path)
    with baggages.told():
        return seals.old_seal(path, options) if seals.is_made(path) else seals.new_seal(path, options)


def _run_kept(
    given: argparse.Namespace,
    urls: Sequence[str],
    asked: Asked,
    exports: Sequence[_Export],
    options: seals.Asked,
) -> None:
    seal = _seal(given.baggage, options)
    key_file = seals.file_to_come(seal)
    with baggages.made(given.baggage, seal) as baggage:
        seals.remark("serve", key_file)
        ports = baggage.namespace(_SPACE).namespace("ports")
        netlayers = _netlayers(urls, asked, ports)
        SIGNALS.run(
            partial(
                _serve,
                traced(netlayers) if given.trace else netlayers,
                exports,
                given.control,
                kept_in=given.baggage,
                baggage=baggage,
            )
        )


async def _serve(
    netlayers: Sequence[Netlayer],
    exports: Sequence[_Export],
    control: str | None,
    *,
    kept_in: str | None = None,
    baggage: Any = None,
) -> NoReturn:
    limits = limits_for(netlayer.transport for netlayer in netlayers)
    async with open_peer(netlayers, limits=limits, baggage=baggage) as peer, AsyncExitStack() as stack:
        if control is not None:
            await stack.enter_async_context(control_socket(peer, control))
        elif kept_in is not None:
            try:
                await stack.enter_async_context(control_socket(peer, control_path(kept_in)))
            except ConnectFailed as error:  # nobody has asked for it
                complain(f"ocapn serve: 'ocapn status' will not work: {error}; --control takes another path")
        if baggage is None:
            sturdyrefs = [peer.export(export.make(), export.swiss) for export in exports]
        else:
            sturdyrefs = _kept(peer, netlayers, exports, baggage.namespace(_SPACE))
            await peer.settled()  # what is printed is to be so after a crash too
        for export, sturdyref in zip(exports, sturdyrefs, strict=True):
            for netlayer in netlayers:
                print(export.name, SturdyRef(peer.locator(netlayer.transport), sturdyref.swiss).uri)
        sys.stdout.flush()
        if sys.stderr.isatty():
            complain("ocapn serve: serving; Ctrl-C stops")
        await trio.sleep_forever()


def _kept(
    peer: Peer, netlayers: Sequence[Netlayer], exports: Sequence[_Export], kept: Any
) -> list[SturdyRef]:
    """Exports what there is under the swiss numbers that it had, and nothing else. Notes the ports."""
    ports, numbers, objects = (kept.namespace(name) for name in ("ports", "swiss", "objects"))
    for netlayer in netlayers:
        if netlayer.port is not None and ports.get(netlayer.transport) != netlayer.port:
            ports[netlayer.transport] = netlayer.port
    named = {export.name for export in exports}
    for name in numbers:
        if name not in named:  # it keeps its number for the next time
            _unexport(peer, numbers[name])
    swiss = {export.name: export.swiss or numbers.get(export.name) for export in exports}
    for export in exports:
        drawn = swiss[export.name] = swiss[export.name] or secrets.token_bytes(32)
        others = [name for name in swiss if name != export.name and swiss[name] == drawn]
        if others:
            raise Failure(
                ExitCode.USAGE, f"{export.name} and {others[0]} have the same swiss number; use another file"
            )
    for export in exports:
        before, now = numbers.get(export.name), swiss[export.name]
        if before != now:
            if before is not None:
                _unexport(peer, before)
            numbers[export.name] = now
    return [_exported_again(peer, export, swiss[export.name], objects) for export in exports]


def _exported_again(peer: Peer, export: _Export, swiss: bytes | None, objects: Any) -> SturdyRef:
    if not baggages.is_durable(export.cls):
        if swiss is not None and export.name in objects:  # it was of a kind, the last time
            _unexport(peer, swiss)
        return peer.export(export.make(), swiss)
    obj = objects.provide(export.name, export.make)
    if not isinstance(obj, export.cls):
        raise Failure(
            ExitCode.USAGE,
            f"the baggage has a {type(obj).__name__} as {export.name}, and {export.place} is something else; "
            "choose another name",
        )
    return peer.export(obj, swiss)


def _unexport(peer: Peer, swiss: bytes) -> None:
    try:
        peer.unexport(SturdyRef(peer.locator(), swiss))
    except KeyError:  # it was of no kind, and so is not there again
        pass


def _asked(given: argparse.Namespace, urls: Sequence[str]) -> Asked:
    """What the options say of how to listen. Raises Failure, ConnectFailed."""
    schemes = [url.partition(":")[0].lower() for url in urls]
    proves = [scheme for scheme in schemes if scheme in ("noise", "ws", "wss", "onion")]
    if given.designator is not None:
        if proves == schemes:
            raise Failure(
                ExitCode.USAGE,
                "the designator of a noise, websocket or onion peer is its key, which --identity FILE keeps",
            )
        try:
            PeerLocator("unix", given.designator)
        except BadLocator as error:
            raise Failure(ExitCode.USAGE, f"--designator: {error}") from None
    if given.identity and not proves:
        raise Failure(ExitCode.USAGE, "--identity is for --listen noise://, ws://, wss:// and onion")
    if (given.tor_socks or given.tor_control or given.tor_password_file) and "onion" not in schemes:
        raise Failure(
            ExitCode.USAGE, "--tor-socks, --tor-control and --tor-password-file are for --listen onion"
        )
    if given.relay and "noise" not in schemes:
        raise Failure(ExitCode.USAGE, "--relay is for --listen noise://, or --listen noise")
    try:
        relays = tuple(map(PeerLocator.parse, given.relay))
        NoiseNetlayer(relays=relays)
    except (BadLocator, ValueError) as error:
        raise Failure(ExitCode.USAGE, f"--relay: {error}") from None
    url, addresses = None, []
    for place in given.advertise:
        is_url = place.startswith(("ws://", "wss://"))
        if (is_url and not {"ws", "wss"} & set(schemes)) or (not is_url and "noise" not in schemes):
            raise Failure(
                ExitCode.USAGE,
                "--advertise is HOST:PORT for --listen noise://, or a URL for --listen ws:// and wss://",
            )
        try:
            if is_url:
                extra("websocket").url_parts(place)
                url = place
            else:
                parse_address(place)
                addresses.append(place)
        except BadLocator as error:
            raise Failure(ExitCode.USAGE, f"--advertise: {error}") from None
    if len(addresses) > MOST_ADDRESSES:
        raise Failure(ExitCode.USAGE, f"--advertise takes up to {MOST_ADDRESSES} addresses")
    return Asked(
        designator=given.designator,
        advertise=tuple(addresses),
        relays=relays,
        url=url,
        certificate=given.tls_certificate,
        key=given.tls_key,
        insecure_bind=given.insecure_bind,
        socks=given.tor_socks,
        control=given.tor_control,
        password=None if given.tor_password_file is None else _password_in(given.tor_password_file),
    )


#: Bytes of a password of the control port of Tor.
_PASSWORD: Final = 1024


def _password_in(path: str) -> str:
    """The first line of a file. Raises Failure."""
    try:
        password = read_bytes(path, _PASSWORD + 2).decode().partition("\n")[0].removesuffix("\r")
    except UnicodeDecodeError:
        password = ""
    if not password or len(password.encode()) > _PASSWORD:
        raise Failure(
            ExitCode.MALFORMED,
            f"{path} holds no password: its first line is one, of up to {_PASSWORD:,} bytes",
        )
    if path != "-":
        _warn_if_open(path)
    return password


def _netlayers(
    urls: Sequence[str], asked: Asked, ports: Mapping[str, int] = MappingProxyType({})
) -> list[Netlayer]:
    """Those of the URLs, where the system chooses at the port that is kept for their transport. Raises Failure."""
    netlayers: list[Netlayer] = []
    for url in urls:
        netlayer = listening(url, asked)
        transport = netlayer.transport
        if any(other.transport == transport for other in netlayers):
            raise Failure(
                ExitCode.USAGE,
                f"--listen is given twice for {transport}; a peer listens once on each transport",
            )
        port = ports.get(transport)
        netlayers.append(netlayer if port is None else listening(url, asked, port))
    return netlayers


def _split(option: str, text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value or not name.isprintable() or " " in name:
        raise Failure(ExitCode.USAGE, f"{option} takes {form}, a name without spaces before the =")
    return name, value


# Swiss numbers


def _swiss(options: Sequence[str]) -> dict[str, bytes]:
    result: dict[str, bytes] = {}
    for option in options:
        name, value = _split("--swiss", option, "NAME=@FILE")
        if not value.startswith("@") or len(value) == 1:
            raise Failure(
                ExitCode.USAGE,
                "--swiss takes NAME=@FILE; a swiss number on the command line would be in the process list",
            )
        if name in result:
            raise Failure(ExitCode.USAGE, f"--swiss is given twice for {name}")
        swiss = _swiss_in(value[1:])
        for other in result:
            if result[other] == swiss:
                raise Failure(ExitCode.USAGE, f"{other} and {name} have the same swiss number; use two files")
        result[name] = swiss
    return result


def _swiss_in(path: str) -> bytes:
    """The swiss number that a file holds; makes the file if there is none."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    except OSError as error:
        raise Failure(ExitCode.FILE, f"cannot make {path}: {error.strerror or error}") from error
    else:
        swiss = secrets.token_bytes(32)
        with open(fd, "wb") as file:
            file.write(swiss)
            file.flush()
            os.fsync(fd)
        return swiss
    swiss = read_bytes(path, 1025)
    if not 1 <= len(swiss) <= 1024:
        has = "nothing" if not swiss else "too much"
        raise Failure(
            ExitCode.MALFORMED,
            f"{path} holds {has}: a swiss number is 1 to 1,024 bytes; remove it and a new one is made",
        )
    _warn_if_open(path)
    return swiss


def _warn_if_open(path: str) -> None:
    if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        complain(f"ocapn serve: warning: other users may read the secret in {path}; chmod 600 ends that")


# Objects


def _exports(options: Sequence[str], swiss: dict[str, bytes]) -> list[_Export]:
    named: dict[str, str] = {}
    for option in options:
        name, place = _split("--export", option, "NAME=MODULE:ATTRIBUTE")
        if name in named:
            raise Failure(ExitCode.USAGE, f"--export is given twice for {name}; choose another name")
        named[name] = place
    for name in swiss:
        if name not in named:
            raise Failure(ExitCode.USAGE, f"--swiss names {name}, which no --export does")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    return [_Export(name, place, *_find(place), swiss.get(name)) for name, place in named.items()]


def _imported(module_name: str) -> object:
    """The module. Raises Failure."""
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise _failed(f"importing {module_name}", error) from error
        raise Failure(
            ExitCode.USAGE,
            f"there is no module {error.name}; modules are found from the current directory and among those installed",
        ) from None
    except (Exception, SystemExit) as error:
        raise _failed(f"importing {module_name}", error) from error


def _find(place: str) -> tuple[Callable[[], Target], type[Target]]:
    """What makes the target for `MODULE:ATTRIBUTE`, and its class. Imports the module. Raises Failure."""
    module_name, colon, path = place.partition(":")
    if not colon or not module_name or not path:
        raise Failure(ExitCode.USAGE, f"--export {place}: after the = comes MODULE:ATTRIBUTE")
    found = _imported(module_name)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise Failure(ExitCode.USAGE, f"--export {place}: there is no {name} in it") from None
    if isinstance(found, Target):
        return lambda: found, type(found)
    if isinstance(found, type):
        if not issubclass(found, Target):
            raise Failure(
                ExitCode.USAGE,
                f"{place} is a class that is no ocapn.Target; subclass ocapn.Target, and mark "
                "the methods that others may call with @ocapn.method",
            )
        return partial(_instance, place, found), found
    if callable(found):
        try:
            wrapped = target(found)
        except TypeError as error:
            raise Failure(ExitCode.USAGE, f"{place} cannot be exported: {error}") from None
        return lambda: wrapped, type(wrapped)
    raise Failure(
        ExitCode.USAGE,
        f"{place} is of type {type(found).__name__}; what is exported is an ocapn.Target, a subclass of it, "
        "or a function",
    )


def _instance(place: str, kind: type[Target]) -> Target:
    try:
        return kind()
    except Exception as error:
        raise _failed(f"{place}()", error) from error


def _failed(what: str, error: BaseException) -> Failure:
    told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    hint = "" if debugging() else "; OCAPN_DEBUG=1 shows where"
    return Failure(ExitCode.USAGE, f"{what} failed: {told}{hint}")


COMMAND: Final = Command(
    name="serve",
    summary="serve objects of a Python module, and print their sturdyrefs",
    usage="--export NAME=MODULE:ATTRIBUTE ... [--listen URL ...] [OPTIONS]",
    description=_DESCRIPTION,
    epilog=_EPILOG,
    codes=(ExitCode.NO_SESSION, ExitCode.MALFORMED, ExitCode.FILE, ExitCode.BAGGAGE, ExitCode.PIPE),
    add_arguments=_add_arguments,
    run=_run,
)
