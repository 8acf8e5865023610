"""Allow only safe codecs to decode arrays of other programs.

A zarr array names its own codecs, and some that numcodecs registers (`pickle`) run code from the
file, even on opening, since a fill value is decoded too. So `.zarray` is read as text, and its
codecs are compared with a list, before zarr opens the array.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zarr.util import normalize_storage_path

from common.errors import UserError
from common.talk import some

COMPRESSORS = ("blosc", "bz2", "gzip", "lz4", "lzma", "pcodec", "zfpy", "zlib", "zstd")
"""Allowed codecs of numcodecs that compress bytes."""

FILTERS = (
    *("adler32", "astype", "base64", "bitround", "crc32", "crc32c", "delta"),
    *("fixedscaleoffset", "fletcher32", "jenkins_lookup3", "packbits", "quantize", "shuffle"),
)
"""Those that change numbers or guard them. Left out: what makes objects of Python, not numbers."""


def check(store: Mapping[str, bytes], name: str, path: str | Path) -> None:
    """Refuse an array that is not decoded by known codecs into numbers, without opening it.

    Metadata that are missing or no JSON are left to the reader, who says so.

    Args:
        store: of zarr.
        name: of the array in the store.
        path: of the array, for the message.

    Raises:
        UserError: with the codec and what to write instead.
    """
    try:
        metadata = json.loads(bytes(store[f"{normalize_storage_path(name)}/.zarray"]))
    except (KeyError, ValueError, RecursionError):
        return
    if not isinstance(metadata, dict):
        return
    if _has_objects(metadata.get("dtype")):
        raise UserError(f"{path}: holds objects of Python; write an array of numbers")
    problem = _codec_problem(metadata.get("filters") or [], metadata.get("compressor"))
    if problem:
        raise UserError(f"{path}: {problem}")


def _codec_problem(filters: Any, compressor: Any) -> str:
    """Return what is wrong with the codecs that an array names; empty if nothing is."""
    if not isinstance(filters, list):
        return f"filters {filters!r} are no list of codecs; write the array again"
    configured = [codec for codec in [*filters, compressor] if codec is not None]
    names = [codec.get("id") if isinstance(codec, dict) else None for codec in configured]
    for codec_id, codec in zip(names, configured, strict=True):
        if not isinstance(codec_id, str):
            return f"{codec!r} is no codec, which has an 'id'; write the array again"
        if codec_id not in COMPRESSORS + FILTERS:
            return (
                f"codec '{codec_id}' is not decoded, as a file could bring code with it; "
                f"write the array with one of {some(COMPRESSORS, 9)}"
            )
    packing = [codec_id for codec_id in names if codec_id in COMPRESSORS]
    if len(packing) > 1:
        # packed in packed: a few bytes can become more than any disk holds
        return f"compressed {len(packing)} times ({', '.join(packing)}); write it with one codec"
    return ""


def _has_objects(dtype: Any) -> bool:
    """Return whether a dtype of .zarray, a text or a list of fields, holds Python's objects."""
    if isinstance(dtype, list):
        fields = [field for field in dtype if isinstance(field, list) and len(field) > 1]
        return any(_has_objects(field[1]) for field in fields)
    # 'O' stands in no other code of a dtype, also not in a list of them such as 'u1,O'
    return isinstance(dtype, str) and ("O" in dtype or "object" in dtype)


class BloscLengths(NamedTuple):
    """Lengths of a Blosc chunk in bytes, from its header."""

    packed: int
    """Compressed length, header included."""
    unpacked: int
    """Length of the decompressed values."""


def blosc_lengths(header: bytes) -> BloscLengths:
    """Return what the first 16 bytes of a Blosc chunk say of its lengths."""
    # Source: https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst
    packed = int.from_bytes(header[12:], "little")
    return BloscLengths(max(packed, 16), unpacked=int.from_bytes(header[4:8], "little"))
