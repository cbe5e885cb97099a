"""A structural GLB validator for tests: what glTF 2.0 demands of the files that we write, checked from the bytes."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPES = {5121: np.dtype("<u1"), 5123: np.dtype("<u2"), 5125: np.dtype("<u4"), 5126: np.dtype("<f4")}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


def split_glb(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Check header and chunks; the JSON object and the binary chunk."""
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data)), "header"
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0, "the first chunk is JSON, padded to 4"
    text = data[20 : 20 + size]
    assert text.rstrip(b" ")[-1:] == b"}", "JSON is padded with spaces"
    binary_size, kind = struct.unpack_from("<I4s", data, 20 + size)
    assert kind == b"BIN\0" and binary_size % 4 == 0, "the second chunk is binary, padded to 4"
    assert 28 + size + binary_size == len(data), "nothing follows"
    return json.loads(text), data[28 + size :]


def validate_glb(data: bytes) -> dict[str, NDArray[Any]]:
    """Assert that ``data`` is well formed; its arrays by attribute name, and ``indices``."""
    document, binary = split_glb(data)
    assert document["asset"]["version"] == "2.0" and document["scene"] == 0
    assert document["scenes"][0]["nodes"] == [0] and document["nodes"][0]["mesh"] == 0
    assert len(document["buffers"]) == 1 and 0 <= len(binary) - document["buffers"][0]["byteLength"] <= 3
    used = 0
    for view in document["bufferViews"]:
        assert view["byteOffset"] % 4 == 0 and view["byteOffset"] >= used and view["byteLength"] > 0
        used = view["byteOffset"] + view["byteLength"]
        assert used <= document["buffers"][0]["byteLength"]
    (primitive,) = document["meshes"][0]["primitives"]
    arrays = {name: _array(document, binary, index, 34962) for name, index in primitive["attributes"].items()}
    arrays["indices"] = _array(document, binary, primitive["indices"], 34963)
    count = len(arrays["POSITION"])
    assert all(len(array) == count for name, array in arrays.items() if name != "indices")
    assert arrays["indices"].max() < count and len(arrays["indices"]) % 3 == 0
    assert arrays["indices"].max() < np.iinfo(arrays["indices"].dtype).max, "the largest index restarts primitives"
    assert np.abs(np.linalg.norm(arrays["NORMAL"], axis=1) - 1).max() < 1e-3
    position = document["accessors"][primitive["attributes"]["POSITION"]]
    assert (
        position["min"] == arrays["POSITION"].min(0).tolist() and position["max"] == arrays["POSITION"].max(0).tolist()
    )
    material = document["materials"][primitive["material"]]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0, "a metal shows no colour of its own"
    return arrays


def _array(document: dict[str, Any], binary: bytes, index: int, target: int) -> NDArray[Any]:
    """An accessor's values, after checking that it fits its view."""
    accessor = document["accessors"][index]
    view = document["bufferViews"][accessor["bufferView"]]
    dtype, width = _DTYPES[accessor["componentType"]], _WIDTHS[accessor["type"]]
    assert view["target"] == target
    assert accessor["count"] * width * dtype.itemsize == view["byteLength"]
    assert (width * dtype.itemsize) % 4 == 0 or target == 34963, "vertex attributes are aligned to 4"
    values = np.frombuffer(binary, dtype, accessor["count"] * width, view["byteOffset"])
    return values.reshape(-1, width) if width > 1 else values
