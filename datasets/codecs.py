"""The image codecs of a store. Stock zarr can decode all of them.

| name | bytes                                  | for                                                     |
|------|----------------------------------------|---------------------------------------------------------|
| raw  | as they are                            | the fastest reads                                       |
| lz4  | lossless (blosc)                       | fast reads, little smaller                              |
| zstd | lossless                               | the default                                             |
| jpeg | JPEG, quality 90, 4:2:0                | photographs: 10 times smaller                           |
| webp | WebP, quality 75                       | 20 times smaller, slower to decode                      |

All but raw are followed by their CRC-32C. To read jpeg and webp, stock zarr needs imagecodecs-zarr.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from numcodecs import blosc
from numcodecs.zstd import compress, decompress

from vla.datasets.folder import Buffer
from vla.errors import InputError, suggestion

DEFAULT = "zstd"
ZSTD_LEVEL, LZ4_LEVEL, JPEG_QUALITY, WEBP_QUALITY = 1, 5, 90, 75
# Windows are decoded in threads already.
blosc.use_threads = False


@dataclass(frozen=True)
class Codec:
    """An image codec.

    `encode` turns an array into bytes; `decode` writes the decoded values into an array of the same shape and dtype.
    `zarr` returns the arguments with which zarr-python creates an array of such chunks. `crc`: chunks end with a CRC.
    """

    name: str
    lossless: bool
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[Buffer, np.ndarray], object]
    zarr: Callable[[], dict[str, Any]]
    crc: bool = True


def codec(name: str) -> Codec:
    """The codec of this name. Raises InputError, which lists the codecs, if there is none."""
    if name not in CODECS:
        near = suggestion(name, CODECS)
        raise InputError(f"there is no codec {name!r}; a store's images are {', '.join(CODECS)}{near}")
    return CODECS[name]


def _copy(stored: Buffer, out: np.ndarray) -> None:
    out[...] = np.frombuffer(stored, out.dtype).reshape(out.shape)


def _raw_zarr() -> dict[str, Any]:
    return {"compressors": None}


def _zstd_zarr() -> dict[str, Any]:
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return {"compressors": [ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()]}


def _lz4_zarr() -> dict[str, Any]:
    from zarr.codecs import BloscCodec, Crc32cCodec

    lz4 = BloscCodec(cname="lz4", clevel=LZ4_LEVEL, shuffle="noshuffle", typesize=1)
    return {"compressors": [lz4, Crc32cCodec()]}


def _lz4(array: np.ndarray) -> bytes:
    return blosc.compress(np.ascontiguousarray(array), b"lz4", LZ4_LEVEL, blosc.NOSHUFFLE)


def _jpeg(image: np.ndarray) -> bytes:
    from imagecodecs import jpeg8_encode

    # Huffman tables optimized per image make the file a sixteenth smaller.
    return bytes(jpeg8_encode(np.ascontiguousarray(image), level=JPEG_QUALITY, subsampling="420", optimize=True))


def _jpeg_decode(stored: Buffer, out: np.ndarray) -> None:
    simplejpeg.decode_jpeg(stored, buffer=out)


def _jpeg_zarr() -> dict[str, Any]:
    from imagecodecs.zarr import Jpeg
    from zarr.codecs import Crc32cCodec

    return {"serializer": Jpeg(level=JPEG_QUALITY, subsampling="420", optimize=True), "compressors": [Crc32cCodec()]}


def _webp(image: np.ndarray) -> bytes:
    from imagecodecs import webp_encode

    return bytes(webp_encode(np.ascontiguousarray(image), level=WEBP_QUALITY, lossless=False))


def _webp_decode(stored: Buffer, out: np.ndarray) -> None:
    from imagecodecs import webp_decode

    webp_decode(stored, out=out)


def _webp_zarr() -> dict[str, Any]:
    from imagecodecs.zarr import Webp
    from zarr.codecs import Crc32cCodec

    return {"serializer": Webp(level=WEBP_QUALITY, lossless=False), "compressors": [Crc32cCodec()]}


CODECS = {
    entry.name: entry
    for entry in (
        Codec("raw", True, lambda array: np.ascontiguousarray(array).tobytes(), _copy, _raw_zarr, crc=False),
        Codec("lz4", True, _lz4, blosc.decompress, _lz4_zarr),
        Codec("zstd", True, lambda a: compress(np.ascontiguousarray(a), ZSTD_LEVEL), decompress, _zstd_zarr),
        Codec("jpeg", False, _jpeg, _jpeg_decode, _jpeg_zarr),
        Codec("webp", False, _webp, _webp_decode, _webp_zarr),
    )
}
