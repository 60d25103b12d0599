"""``fewbit.json``: canonical JSON that carries its own digest.

The file is one JSON object, a member a line, in ASCII. Its last member, ``digest``, is the SHA-256 of the
same text without it. Reading parses the text, writes the object again, digest and all, and compares byte for
byte: so there is one way to write a given content, and a flipped bit anywhere, even in the white space, is
found.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NoReturn

from fewbit.errors import FewbitError
from fewbit.formats.architecture.description import members_of
from fewbit.formats.architecture.values import Json

NAME = "fewbit.json"
FORMAT_VERSION = 2  # the newest that is read; 2 has weights in several files
_MAX_BYTES = 64 * 2**20


def to_bytes(content: dict[str, Json]) -> bytes:
    """Write an object canonically, with its digest added.

    Args:
        content: JSON values with string keys; floats are finite.

    Raises:
        FewbitError: It comes out larger than a reader would take (64 MiB).
    """
    plain = _lines(content)
    data = _lines({**content, "digest": hashlib.sha256(plain).hexdigest()})
    if len(data) > _MAX_BYTES:
        raise FewbitError(f"the description of this model takes {len(data)} bytes: more than fewbit reads back")
    return data


def _lines(content: dict[str, Json]) -> bytes:
    members = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in content.items()]
    return ("{\n" + ",\n".join(members) + "\n}\n").encode("ascii")


def read(path: Path, types: dict[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Read and check what `to_bytes` wrote.

    Args:
        path: The file.
        types: The members it must have besides ``digest``, and no others, with their Python types.

    Returns:
        The content without the digest.

    Raises:
        FewbitError: The file is missing, damaged, from a newer fewbit, or not fewbit's.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise FewbitError(f"{path} is not a description of a model: it is larger than any that fewbit writes")
        data = path.read_bytes()
    except OSError as error:
        raise FewbitError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        content = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FewbitError(f"{path} is damaged or not written by fewbit: it is not the JSON it should be") from error
    _check_version(path, content)
    try:
        whole = members_of(content, {**types, "digest": str})
        whole.pop("digest")
        intact = to_bytes(whole) == data  # the digest is among the bytes
    except (ValueError, RecursionError) as error:
        raise FewbitError(f"{path} is damaged or not written by fewbit: {str(error)[:200]}") from error
    if not intact:
        raise FewbitError(f"{path} is damaged: its content does not match its own digest, so save the model again")
    return whole


def _check_version(path: Path, content: Json) -> None:
    if not isinstance(content, dict) or content.get("format") != "fewbit":
        raise FewbitError(f"{path} is damaged or not written by fewbit: it does not say so")
    version = content.get("format_version")
    if type(version) is not int or version < 1:
        raise FewbitError(f"{path} is damaged or not written by fewbit: it has no format version")
    if version > FORMAT_VERSION:
        raise FewbitError(
            f"{path} was written by a newer fewbit (format version {str(version)[:20]}, this one reads up to "
            f"{FORMAT_VERSION}): upgrade fewbit"
        )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
