"""Large `bytes` and texts to JSON and back in pieces, so that the event loop is free between them.

Whoever writes or reads JSON holds the interpreter until it is done, in whichever thread; with hundreds of megabytes for
so long that a host loses its lease. JSON of `bytes` (base64) and of plain text is its pieces one after the other. That
of anything else, and of text that is not ASCII, is not: it is written and read in one go.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from secrets import token_hex
from typing import TYPE_CHECKING, Any, NamedTuple

from statestores.codec import CodecError, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from statestores.codec import Adapter

    Data = bytes | bytearray | memoryview

PIECE = 3 << 20
"""Of `bytes`, and of text. A multiple of 3, so the base64 of one ends where that of the next begins."""

_PIECE_OF_BASE64 = PIECE // 3 * 4
_MOST_STRINGS = 100


class Unwritten:
    """JSON to be: what is written already, and values to be put between. They cannot change, so it may wait."""

    __slots__ = ("_parts",)

    def __init__(self, parts: list[bytes | Raw]) -> None:
        self._parts = parts

    @classmethod
    def of_array(cls, values: Sequence[object]) -> Unwritten | None:
        """None: nothing of it is large. Raises `CodecError`."""
        if not any(map(is_large, values)):
            return None
        parts: list[bytes | Raw] = []
        for value in values:
            parts += (b"," if parts else b"[", Raw(value) if is_large(value) else encode(value))
        return cls([*parts, b"]"])

    def __len__(self) -> int:
        """So long it is at least."""
        return sum(len(part.value) if isinstance(part, Raw) else len(part) for part in self._parts)

    async def write(self) -> bytes:
        out = io.BytesIO()  # gives what it has without a copy
        for part in self._parts:
            for piece in part.pieces() if isinstance(part, Raw) else (part,):
                out.write(piece)
                await asyncio.sleep(0)
        return out.getvalue()


class Raw(NamedTuple):
    """`bytes`, or ASCII text."""

    value: Any

    def pieces(self) -> Iterator[bytes]:
        yield b'"'
        for start in range(0, len(self.value), PIECE):
            yield encode(self.value[start : start + PIECE])[1:-1]
        yield b'"'


def is_large(value: object) -> bool:
    """And can be written in pieces."""
    if type(value) is bytes:
        return len(value) > PIECE
    return type(value) is str and len(value) > PIECE and value.isascii()


async def encode_freely(value: object) -> bytes:
    """`encode`, in pieces if need be."""
    return await Unwritten([Raw(value)]).write() if is_large(value) else encode(value)


async def digest_freely(data: Data) -> str:
    digest = hashlib.sha256()
    with memoryview(data) as view:
        for start in range(0, len(view), PIECE):
            digest.update(view[start : start + PIECE])
            await asyncio.sleep(0)
    return digest.hexdigest()


async def read_freely(decoder: Adapter[Any] | None, data: Data) -> Any:
    """What the JSON says, for that decoder, when it is one large string that can be read in pieces; else None."""
    if len(data) <= PIECE or data[0] != ord('"') or data[-1] != ord('"'):
        return None
    with memoryview(data) as whole, whole[1:-1] as view:
        if decoder is None or decoder.annotation is str:
            return await _read_text(view)
        return await _read_bytes(decoder, view) if decoder.annotation is bytes else None


async def _read_text(view: memoryview) -> str | None:
    for start in range(0, len(view), PIECE):
        piece = bytes(view[start : start + PIECE])
        if b"\\" in piece or b'"' in piece or not piece.isascii():
            return None
        await asyncio.sleep(0)
    return str(view, "ascii")  # one copy: of all steps the longest


async def _read_bytes(decoder: Adapter[bytes], view: memoryview) -> bytes | None:
    out = io.BytesIO()
    for start in range(0, len(view), _PIECE_OF_BASE64):
        if out.tell() != start // 4 * 3:  # one before was no base64, or had an end
            return None
        try:
            out.write(decoder.decode(b'"%b"' % bytes(view[start : start + _PIECE_OF_BASE64])))
        except CodecError:  # told by who reads it whole
            return None
        await asyncio.sleep(0)
    return out.getvalue()


async def read_array_freely(
    decoders: Sequence[Adapter[Any] | None], data: Data
) -> tuple[list[Any], dict[int, Any]] | None:
    """A JSON array whose large strings can be read in pieces, each for the decoder at its place: all values, parsed,
    and by their places those strings, decoded. None: it is not such. Raises `CodecError`."""
    cuts = _large_strings(data) if len(data) > PIECE and data[0] == ord("[") else []
    if not cuts:
        return None
    mark = token_hex(16)
    rest, end = bytearray(), 0
    with memoryview(data) as view:
        for number, (opening, closing) in enumerate(cuts):
            rest += view[end:opening]
            rest += f'"{mark}{number}"'.encode()
            end = closing + 1
        rest += view[end:]
        values = decode(rest)
        places = [place for place, value in enumerate(values) if isinstance(value, str) and value.startswith(mark)]
        if len(places) != len(cuts) or places[-1] >= len(decoders):
            return None
        large: dict[int, Any] = {}
        for place, (opening, closing) in zip(places, cuts, strict=True):
            with view[opening : closing + 1] as string:
                large[place] = value = await read_freely(decoders[place], string)
            if value is None:
                return None
    return values, large


def _large_strings(data: Data) -> list[tuple[int, int]]:
    """Where their quotes are, in JSON of few strings without escapes. Of any other, []. (Those in a large string are
    found by who reads it.)"""
    if isinstance(data, memoryview):  # cannot be searched
        return []
    found: list[tuple[int, int]] = []
    closing = -1
    for _ in range(_MOST_STRINGS):
        opening = data.find(b'"', closing + 1)
        if opening < 0:
            return found
        closing = data.find(b'"', opening + 1)
        if closing - opening > PIECE:
            found.append((opening, closing))
        elif b"\\" in data[opening : closing + 1]:
            return []
    return []
