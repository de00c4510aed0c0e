"""A recording over HTTP, whole or in parts: players jump about in it (RFC 9110, section 14)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from admin.messages import as_json
from calls.store import RecordingRow
from media.recordings import KeptFile

BLOCK = 256 * 1024
TYPES = {"flac": "audio/flac", "opus": "audio/ogg"}
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")


def sound(request: Request, row: RecordingRow, file: KeptFile) -> Response:
    """The part that is asked for; closes the file at its end."""
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}
    media_type = TYPES.get(row.codec, "application/octet-stream")
    try:
        part = part_of(request.headers.get("range", ""), file.size)
    except NoSuchPart:
        file.close()
        return as_json({"error": "no_such_part", "message": f"The recording has {file.size} bytes."}, 416,
                       headers | {"Content-Range": f"bytes */{file.size}"})
    start, stop = part or (0, file.size)
    headers["Content-Length"] = str(stop - start)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    return StreamingResponse(_blocks(file, start, stop), 200 if part is None else 206, headers, media_type)


class NoSuchPart(ValueError):
    """A part that the file doesn't have."""


def part_of(asked: str, size: int) -> tuple[int, int] | None:
    """First byte, and the one after the last, of a `Range` header; None, the whole, for what isn't one range of bytes.
    Raises NoSuchPart."""
    match = _RANGE.fullmatch(asked.replace(" ", ""))
    if match is None or match[1] == match[2] == "":
        return None
    if not match[1]:
        start, stop = max(0, size - int(match[2])), size
    else:
        start, stop = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    if start >= stop:
        raise NoSuchPart(asked)
    return start, stop


async def _blocks(file: KeptFile, start: int, stop: int) -> AsyncIterator[bytes]:
    try:
        while start < stop:
            block = await file.read(start, min(BLOCK, stop - start))
            if not block:
                return
            yield block
            start += len(block)
    finally:
        file.close()
