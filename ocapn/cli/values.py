"""JSON and the values of the OCapN model, both ways; and values for people.

The mapping is one to one, so that what `from_model` writes `to_model` reads back as an equal value; only references
have no JSON that could be read. `HELP` describes it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import Final, NoReturn

from ocapn.cli.output import printable
from ocapn.errors import BadLocator, RemoteError
from ocapn.model.locators import PeerLocator, SturdyRef
from ocapn.model.values import Null, NullType, Symbol, Tagged

HELP: Final = """\
JSON and the OCapN model, for arguments and for results with --json:
  null, true, false        Null and the Booleans
  1, -20                   an Integer of any size: a number without point and exponent
  1.0, 2e3                 a Float64: 1 and 1.0 are different values
  "text"                   a String
  [1, 2]                   a List
  {"a": 1}                 a Struct
  {"$symbol": "x"}         a Symbol
  {"$bytes": "aGk="}       a ByteArray, in base64
  {"$tagged": ["t", 1]}    a Tagged value: the tag and what it tags
  {"$undefined": true}     Undefined, what a method without result answers
  {"$float": "nan"}        the Float64s that JSON has not: "nan", "inf", "-inf"
  {"$error": "message"}    an Error
  {"$sturdyref": "uri"}    a sturdyref, as a value; in a result it is whole, and a secret
  {"$peer": "uri"}         the locator of a peer
  {"$struct": {"$a": 1}}   a Struct that has a field whose name begins with $
  {"$ref": "description"}  a reference or a promise: in results only"""


def parse_json(text: str, where: str) -> object:
    """The value of the model that a JSON text writes. Raises ValueError, which begins with `where`."""
    try:
        data = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int
        )
        return to_model(data, where)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is not JSON: {error.msg.lower()} at character {error.pos + 1}; "
            "a string has quotes, which the shell must leave: '\"Ann\"'"
        ) from None
    except _Refused as error:
        raise ValueError(f"{where}: {error}") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deep; a message may have 64 levels") from None


class _Refused(Exception):
    """JSON that is well-formed and means nothing here."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"the key {twice!r} is there twice")
    return result


def _constant(name: str) -> NoReturn:
    written = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}[name]
    raise _Refused(f'{name} is not JSON; write {{"$float": "{written}"}}')


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _Refused('a number is beyond what a Float64 holds; infinity is written {"$float": "inf"}')
    return value


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _Refused(f"an integer has {len(text)} digits, more than any peer takes") from None


def to_model(data: object, where: str) -> object:
    """The value of the model for what `json.loads` made. Raises ValueError, which begins with `where`."""
    if data is None:
        return Null
    if isinstance(data, list):
        return [to_model(member, f"{where}[{i}]") for i, member in enumerate(data)]
    if not isinstance(data, dict):
        return data
    special = [key for key in data if key.startswith("$")]
    if not special:
        return _fields(data, where)
    form = special[0]
    if len(data) == 1 and form in _FORMS:
        try:
            return _FORMS[form](data[form], where)
        except _Refused as error:
            raise ValueError(f"{where}: {form} takes {error}") from None
        except BadLocator as error:
            raise ValueError(f"{where}: {form}: {error}") from None
    if form == "$ref":
        raise ValueError(f"{where}: a reference cannot be written in JSON; a sturdyref can, as $sturdyref")
    why = "stands alone in its object" if form in _FORMS else "is no form that is known here"
    raise ValueError(
        f'{where}: {form} {why}; a struct with a field of that name is written {{"$struct": {{"{form}": …}}}}'
    )


def _fields(data: dict[str, object], where: str) -> dict[str, object]:
    return {key: to_model(member, f"{where}[{key!r}]") for key, member in data.items()}


def _text(data: object) -> str:
    if not isinstance(data, str):
        raise _Refused("a string")
    return data


def _symbol(data: object, where: str) -> Symbol:
    try:
        return Symbol(_text(data))
    except UnicodeEncodeError:
        raise _Refused("a string without surrogates") from None


def _bytes(data: object, where: str) -> bytes:
    try:
        return base64.b64decode(_text(data), validate=True)
    except (binascii.Error, ValueError):
        raise _Refused("base64, with its padding") from None


def _tagged(data: object, where: str) -> Tagged:
    if not isinstance(data, list) or len(data) != 2 or not isinstance(data[0], str):
        raise _Refused("a list of a string, the tag, and a value")
    return Tagged(data[0], to_model(data[1], f"{where}.value"))


def _undefined(data: object, where: str) -> None:
    if data is not True:
        raise _Refused("true")


_FLOATS: Final = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


def _special_float(data: object, where: str) -> float:
    if not isinstance(data, str) or data not in _FLOATS:
        raise _Refused('"nan", "inf" or "-inf"')
    return _FLOATS[data]


def _struct(data: object, where: str) -> dict[str, object]:
    if not isinstance(data, dict):
        raise _Refused("an object")
    return _fields(data, where)


_FORMS: Final[dict[str, Callable[[object, str], object]]] = {
    "$symbol": _symbol,
    "$bytes": _bytes,
    "$tagged": _tagged,
    "$undefined": _undefined,
    "$float": _special_float,
    "$error": lambda data, where: RemoteError(_text(data)),
    "$sturdyref": lambda data, where: SturdyRef.parse(_text(data)),
    "$peer": lambda data, where: PeerLocator.parse(_text(data)),
    "$struct": _struct,
}


def from_model(value: object) -> object:
    """What `json.dumps` makes JSON of: the other way round than `to_model`."""
    match value:
        case None:
            return {"$undefined": True}
        case NullType():
            return None
        case float() if value != value:
            return {"$float": "nan"}
        case float() if value in (float("inf"), float("-inf")):
            return {"$float": "inf" if value > 0 else "-inf"}
        case bool() | int() | float() | str():
            return value
        case bytes():
            return {"$bytes": base64.b64encode(value).decode("ascii")}
        case Symbol():
            return {"$symbol": value.name}
        case list() | tuple():
            return [from_model(member) for member in value]
        case dict():
            fields = {key: from_model(member) for key, member in value.items()}
            return {"$struct": fields} if any(key.startswith("$") for key in fields) else fields
        case Tagged():
            return {"$tagged": [value.tag, from_model(value.value)]}
        case RemoteError():
            return {"$error": value.message}
        case SturdyRef():
            return {"$sturdyref": value.uri}
        case PeerLocator():
            return {"$peer": value.uri}
    return {"$ref": repr(value).removeprefix("<").removesuffix(">")}


def json_line(value: object) -> str:
    """A value as one line of JSON, in ASCII."""
    return json.dumps(from_model(value), allow_nan=False)


def readable(value: object) -> str:
    """A value for people, in Python's notation; sturdyrefs are whole, as they are what was asked for."""
    match value:
        case list() | tuple():
            return f"[{', '.join(map(readable, value))}]"
        case dict():
            return f"{{{', '.join(f'{key!r}: {readable(member)}' for key, member in value.items())}}}"
        case Tagged():
            return f"Tagged({value.tag!r}, {readable(value.value)})"
        case SturdyRef():
            return f"SturdyRef({value.uri!r})"
    return printable(repr(value))  # that of a broken promise holds what the other side said
