"""Small slides, their outlines, damage to them, and a server: all that whole slides come as, made here."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


def noise(height: int, width: int, seed: int = 0) -> Picture:
    """(H, W, 3) of smooth coloured noise: everything is tissue."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return np.kron(small, np.ones((8, 8, 1), np.uint8))[:height, :width]


def glass(height: int, width: int, seed: int = 0) -> Picture:
    """(H, W, 3) of empty glass: grey with a little noise of the sensor."""
    grey = np.random.default_rng(seed).integers(238, 246, (height, width, 1), dtype=np.uint8)
    return np.repeat(grey, 3, 2)


def write(path: Path, picture: Picture, mpp: float | None = 0.5, levels: int = 3, compression: str = "zlib") -> Path:
    """A pyramid as scanners write it, tiles of 64 pixels; every level takes every second pixel of the one before."""
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            options = {} if mpp is None else {"resolution": (1e4 / (mpp * 2**level),) * 2}
            file.write(
                picture[:: 2**level, :: 2**level],
                tile=(64, 64),
                photometric="rgb",
                compression=compression,
                resolutionunit="NONE" if mpp is None else "CENTIMETER",
                subfiletype=int(level > 0),
                metadata=None,
                **options,
            )
    return path


def segment(path: Path, tile: int, level: int = 0) -> tuple[int, int]:
    """Where a tile of the file begins, and how many bytes it has."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[level]
        return page.dataoffsets[tile], page.databytecounts[tile]


def damage(path: Path, tile: int, level: int = 0) -> None:
    """Overwrite the middle half of a tile's bytes."""
    offset, count = segment(path, tile, level)
    data = bytearray(path.read_bytes())
    middle = offset + count // 4
    data[middle : middle + 2 * (count // 4)] = b"\xff\x3c" * (count // 4)
    path.write_bytes(data)


def truncate(path: Path, tile: int) -> None:
    """Cut the file off in the middle of a tile."""
    offset, count = segment(path, tile)
    path.write_bytes(path.read_bytes()[: offset + count // 2])


def asap(path: Path, outlines: Sequence[tuple[str, str, Sequence[tuple[float, float]]]]) -> Path:
    """A file of ASAP; outlines are (type, group, points)."""
    body = ""
    for number, (kind, group, points) in enumerate(outlines):
        corners = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(points))
        body += (
            f'<Annotation Name="Annotation {number}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
            f"<Coordinates>{corners}</Coordinates></Annotation>"
        )
    path.write_text(
        f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{body}</Annotations>'
        '<AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#64FE2E"><Attributes /></Group>'
        "</AnnotationGroups></ASAP_Annotations>"
    )
    return path


class _Files(BaseHTTPRequestHandler):
    """``/MODE/NAME``: ``ranges``, ``whole`` (no range requests), ``broken`` (503), ``late`` (503 after a while)."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *words: object) -> None:
        pass

    def do_HEAD(self) -> None:  # noqa: N802
        self.answer(False)

    def do_GET(self) -> None:  # noqa: N802
        self.answer(True)

    def answer(self, with_body: bool) -> None:
        mode, name = self.path.split("?")[0].strip("/").split("/")
        path, asked = self.server.folder / name, self.headers.get("Range")
        late = mode == "late" and len(self.server.ranges) >= self.server.patience
        if mode == "broken" or late or not path.is_file():
            return self.send(503 if path.is_file() else 404, b"", {}, with_body)
        data = path.read_bytes()
        if asked is None or mode == "whole":
            return self.send(200, data, {}, with_body)
        first, last = asked.removeprefix("bytes=").split("-")
        low, high = int(first), min(int(last or len(data)), len(data) - 1)
        self.server.ranges.append((low, high))
        self.send(206, data[low : high + 1], {"Content-Range": f"bytes {low}-{high}/{len(data)}"}, with_body)

    def send(self, status: int, data: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """A server on this machine alone.

    Attributes:
        folder: whose files it sends.
        ranges: the ranges of bytes that it has sent.
        patience: how many ranges it sends in the mode ``late`` before it fails.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Files)
        self.folder, self.ranges, self.patience = folder, [], 10**9

    def url(self, name: str, mode: str = "ranges") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{mode}/{name}"


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A running server for the files of a folder."""
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
