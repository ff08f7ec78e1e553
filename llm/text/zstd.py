"""A .zst file as a stream of bytes that notices a missing end.

zstandard's own reader takes a file that was cut short for a shorter file.
"""

import io
from typing import Any

import zstandard

from llm.text.source import Source

_CHUNK = 1 << 17


def open_zstd(source: Source) -> io.BufferedReader:
    """Open for reading; reading raises EOFError if the file was cut. Many frames are one stream."""
    return io.BufferedReader(_ZstdStream(source), buffer_size=1 << 20)


class _ZstdStream(io.RawIOBase):
    def __init__(self, source: Source) -> None:
        self._file = source.open("rb")
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._frame_began = False
        self._compressed = self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._compressed = self._compressed or self._file.read(_CHUNK)
            if not self._compressed:
                if self._frame_began:
                    raise EOFError("the file was cut: its last frame has no end")
                return 0
            self._ready = self._frame.decompress(self._compressed)
            self._frame_began = not self._frame.eof
            self._compressed = b""
            if self._frame.eof:
                self._compressed = self._frame.unused_data
                self._frame = zstandard.ZstdDecompressor().decompressobj()
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
