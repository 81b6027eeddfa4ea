"""Files that evaluation commands take: of any encoding, compressed or not."""

import gzip
import json
import zlib
from pathlib import Path

GZIP = b"\x1f\x8b"


class BadFile(ValueError):
    """What is wrong with a file, by line, for those who made it."""


def text_of(path: Path) -> str:
    """Read a file in UTF-8, UTF-16 or UTF-32, with or without a mark, or the same compressed by gzip."""
    data = path.read_bytes()
    try:
        data = gzip.decompress(data) if data.startswith(GZIP) else data
        encoding = json.detect_encoding(data)
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].decode(encoding, "ignore").count("\n") + 1
        raise BadFile(f"{path}, line {line} is not {encoding}: {error.reason}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadFile(f"{path} is not whole: {error}") from None
