"""3MF, what slicers read: a zip archive with one XML model. Written and read with the standard library alone."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from multiview.color import bytes_from_unit
from multiview.errors import MeshError

from .fileframe import UNITS
from .gltf import GREY, Triangles
from .pieces import welded

_CORE = "http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
_MATERIAL = "http://schemas.microsoft.com/3dmanufacturing/material/2015/02"
_MODEL_FILE = "3D/3dmodel.model"
_TIME = (1980, 1, 1, 0, 0, 0)  # of every file in the archive, so that equal meshes give equal bytes
_LARGEST = 1 << 31  # bytes of XML that are read: an archive may declare any number
_UNIT_NAMES = {"metre": "meter", "centimetre": "centimeter", "millimetre": "millimeter", "inch": "inch", "foot": "foot"}
_TYPES = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="model" ContentType="application/vnd.ms-package.3dmanufacturing-3dmodel+xml"/></Types>\n'
)
_RELATIONS = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    f'<Relationship Target="/{_MODEL_FILE}" Id="rel0" '
    'Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/></Relationships>\n'
)


def threemf_bytes(
    vertices: NDArray[np.float32],
    faces: NDArray[np.integer],
    colors: NDArray[np.floating],
    *,
    unit: str = "millimetre",
    generator: str = "trilift",
) -> bytes:
    """Encode a mesh as a 3MF archive with a colour at every corner of its triangles.

    Vertices at one place are joined, as 3MF asks for edges that meet; their colours stay apart.

    Args:
        vertices: (N, 3) in file axes (z up) and ``unit``.
        faces: (F, 3), counter-clockwise seen from outside.
        colors: (N, 3) sRGB in [0, 1]; 3MF keeps display values in 8 bits.
        unit: a name of `lrm.fileframe.UNITS`.
        generator: program and version, kept as metadata.

    Returns:
        The file's bytes; the same mesh gives the same bytes.

    Source:
        3MF Core Specification 1.3, chapters 3 and 4; Materials and Properties Extension 1.2.1, chapter 2
        (colour groups).
    """
    places, of_place = welded(vertices)
    palette, of_color = np.unique(bytes_from_unit(colors), axis=0, return_inverse=True)
    corners, paints = of_place[faces].tolist(), of_color.reshape(-1)[faces].tolist()
    pieces = [
        '<?xml version="1.0" encoding="UTF-8"?>\n',
        f'<model unit="{_UNIT_NAMES[unit]}" xml:lang="en-US" xmlns="{_CORE}" xmlns:m="{_MATERIAL}">\n',
        f'<metadata name="Application">{escape(generator)}</metadata>\n<resources>\n<m:colorgroup id="1">\n',
        *('<m:color color="#%02X%02X%02XFF"/>\n' % tuple(rgb) for rgb in palette.tolist()),  # noqa: UP031 (twice as fast)
        '</m:colorgroup>\n<object id="2" type="model" pid="1" pindex="0">\n<mesh>\n<vertices>\n',
        *('<vertex x="%.8g" y="%.8g" z="%.8g"/>\n' % tuple(row) for row in places.tolist()),  # noqa: UP031
        "</vertices>\n<triangles>\n",
        *(
            f'<triangle v1="{a}" v2="{b}" v3="{c}" pid="1" p1="{p}" p2="{q}" p3="{r}"/>\n'
            for (a, b, c), (p, q, r) in zip(corners, paints, strict=True)
        ),
        "</triangles>\n</mesh>\n</object>\n</resources>\n",
        '<build><item objectid="2"/></build>\n</model>\n',
    ]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in (
            ("[Content_Types].xml", _TYPES),
            ("_rels/.rels", _RELATIONS),
            (_MODEL_FILE, "".join(pieces)),
        ):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, text.encode("utf-8"), compresslevel=6)
    return file.getvalue()


def read_3mf(path: str | Path) -> Triangles:
    """Read the objects that the build names, without their build transforms, turned y up; positions keep their numbers.

    Raises:
        MeshError: not a 3MF archive, no triangles, or it contradicts itself; the message names the file.
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(_MODEL_FILE).file_size > _LARGEST:
                raise ValueError(f"its model is larger than {_LARGEST} bytes")
            root = ElementTree.fromstring(archive.read(_MODEL_FILE))
        colors = _palettes(root)
        built = {item.attrib["objectid"] for item in root.iter(f"{{{_CORE}}}item")}
        meshes = [(each, each.find(f"{{{_CORE}}}mesh")) for each in root.iter(f"{{{_CORE}}}object")]
        parts = [
            _object(mesh, colors, each) for each, mesh in meshes
            if mesh is not None and (not built or each.attrib["id"] in built)
        ]  # fmt: skip
        if not parts:
            raise ValueError("none of the objects that its build names has a mesh of its own; components are not read")
    except (
        zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ElementTree.ParseError, KeyError, ValueError,
        IndexError, TypeError,
    ) as error:  # fmt: skip
        raise MeshError(f"{path}: not a usable 3MF file ({type(error).__name__}: {error}). Export it again.") from error
    return Triangles.cat(parts)


def file_unit(path: str | Path) -> str:
    """The unit, of `lrm.fileframe.UNITS`, that a 3MF file states; millimetres where it states none."""
    with zipfile.ZipFile(path) as archive, archive.open(_MODEL_FILE) as file:
        _, root = next(ElementTree.iterparse(file, events=("start",)))
    names = {name: unit for unit, name in _UNIT_NAMES.items()}
    found = names.get(root.attrib.get("unit", "millimeter"), "millimetre")
    assert found in UNITS
    return found


def _palettes(root: ElementTree.Element) -> dict[str, NDArray[np.float64]]:
    """sRGB colours (K, 3) of every colour group by its id."""
    palettes = {}
    for group in root.iter(f"{{{_MATERIAL}}}colorgroup"):
        words = [color.attrib["color"] for color in group]
        rgb = [[int(word[at : at + 2], 16) / 255 for at in (1, 3, 5)] for word in words]
        palettes[group.attrib["id"]] = np.array(rgb, np.float64).reshape(-1, 3)
    return palettes


def _object(
    mesh: ElementTree.Element, palettes: dict[str, NDArray[np.float64]], owner: ElementTree.Element
) -> Triangles:
    """One object's mesh; where it or its triangles carry colours every corner has a vertex of its own."""
    vertices = np.array(
        [[float(v.attrib[axis]) for axis in "xyz"] for v in mesh.iter(f"{{{_CORE}}}vertex")], np.float64
    ).reshape(-1, 3)
    triangles = list(mesh.iter(f"{{{_CORE}}}triangle"))
    faces = np.array([[int(t.attrib[name]) for name in ("v1", "v2", "v3")] for t in triangles], np.int64).reshape(-1, 3)
    if len(faces) and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise ValueError(f"a triangle names vertex {faces.max()} of {len(vertices)}")
    upright = vertices[:, [0, 2, 1]] * (1, 1, -1)  # z up, front -y → y up, front +z
    usual, first = owner.attrib.get("pid"), owner.attrib.get("pindex")
    if first is None and not any("p1" in t.attrib for t in triangles):
        return Triangles(upright, faces, np.full((len(upright), 3), GREY))
    colors = np.full((3 * len(faces), 3), GREY)
    for row, t in enumerate(triangles):
        palette, p1 = palettes.get(t.attrib.get("pid", usual or "")), t.attrib.get("p1", first)
        if palette is not None and p1 is not None:
            own = [p1, t.attrib.get("p2", p1), t.attrib.get("p3", p1)]
            colors[3 * row : 3 * row + 3] = palette[[int(index) for index in own]]
    return Triangles(upright[faces.reshape(-1)], np.arange(3 * len(faces)).reshape(-1, 3), colors)
