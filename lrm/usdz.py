"""USDZ through usd-core, which comes with the extra ``usd``."""

from __future__ import annotations

import importlib
import importlib.util
import io
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multiview.color import linear_from_srgb
from multiview.errors import OutputError, SettingsError

from .glb import png_bytes

if TYPE_CHECKING:
    from .meshformats import PlacedMesh, Style


def usdz_bytes(placed: PlacedMesh, style: Style) -> bytes:
    """Encode a mesh as a UsdGeom.Mesh with per-vertex ``displayColor`` (linear light), or with its baked texture.

    Args:
        placed: y up, metres.
        style: its roughness and normal map go into the material of a textured mesh.

    Raises:
        SettingsError: usd-core is not installed.
        OutputError: it could not pack the archive.

    Source:
        openusd.org: UsdGeomMesh, UsdPreviewSurface, UsdUtilsCreateNewUsdzPackage.
    """
    if importlib.util.find_spec("pxr") is None:
        raise SettingsError("writing .usdz needs usd-core, which is not installed. Try: pip install 'trilift[usd]'.")
    usd, utils = (importlib.import_module(f"pxr.{name}") for name in ("Usd", "UsdUtils"))
    with tempfile.TemporaryDirectory() as folder:
        layer, package = Path(folder) / "object.usdc", Path(folder) / "object.usdz"
        stage = usd.Stage.CreateNew(str(layer))
        mesh = _define_mesh(stage, placed)
        if placed.mesh.texture is not None:
            _define_texture(stage, mesh, placed, style, Path(folder))
        else:
            _define_colors(mesh, placed)
        stage.GetRootLayer().Save()
        if not utils.CreateNewUsdzPackage(str(layer), str(package)):
            raise OutputError("usd-core could not pack the .usdz archive. Check the temporary folder's free space.")
        return _without_clock(package.read_bytes())


def _without_clock(data: bytes) -> bytes:
    """The archive with 1 January 1980 as the time of every file, so that equal meshes give equal bytes.

    Source:
        PKWARE APPNOTE 6.3, sections 4.3.7 and 4.3.12: time and date stand 10 bytes into a local header and 12 into an
        entry of the central directory.
    """
    stamped, midnight = bytearray(data), bytes((0, 0, 0x21, 0))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entry = archive.start_dir
        for info in archive.infolist():
            stamped[info.header_offset + 10 : info.header_offset + 14] = midnight
            stamped[entry + 12 : entry + 16] = midnight
            names = struct.unpack_from("<HHH", data, entry + 28)  # lengths of name, extra field and comment
            entry += 46 + sum(names)
    return bytes(stamped)


def _define_mesh(stage: Any, placed: PlacedMesh) -> Any:
    """Put the mesh on an empty USD stage as ``/object``, y up, metres; the UsdGeom.Mesh."""
    geom, types = (importlib.import_module(f"pxr.{name}") for name in ("UsdGeom", "Vt"))
    vectors, numbers = types.Vec3fArray.FromNumpy, types.IntArray.FromNumpy
    geom.SetStageUpAxis(stage, geom.Tokens.y)
    geom.SetStageMetersPerUnit(stage, 1.0)
    mesh = geom.Mesh.Define(stage, "/object")
    stage.SetDefaultPrim(mesh.GetPrim())
    faces = placed.mesh.faces
    mesh.CreatePointsAttr(vectors(placed.vertices))
    mesh.CreateExtentAttr(vectors(np.stack([placed.vertices.min(0), placed.vertices.max(0)])))
    mesh.CreateFaceVertexCountsAttr(numbers(np.full(len(faces), 3, np.int32)))
    mesh.CreateFaceVertexIndicesAttr(numbers(faces.reshape(-1)))
    mesh.CreateNormalsAttr(vectors(placed.normals))
    mesh.SetNormalsInterpolation(geom.Tokens.vertex)
    mesh.CreateSubdivisionSchemeAttr(geom.Tokens.none)
    return mesh


def _define_colors(mesh: Any, placed: PlacedMesh) -> None:
    geom, sdf, types = (importlib.import_module(f"pxr.{name}") for name in ("UsdGeom", "Sdf", "Vt"))
    color = geom.PrimvarsAPI(mesh).CreatePrimvar("displayColor", sdf.ValueTypeNames.Color3fArray, geom.Tokens.vertex)
    linear = linear_from_srgb(placed.mesh.colors.clip(0, 1))
    color.Set(types.Vec3fArray.FromNumpy(np.ascontiguousarray(linear, dtype=np.float32)))


def _define_texture(stage: Any, mesh: Any, placed: PlacedMesh, style: Style, folder: Path) -> None:
    """A UsdPreviewSurface whose pictures lie in ``folder`` and are packed from there."""
    geom, sdf, shade, types = (importlib.import_module(f"pxr.{name}") for name in ("UsdGeom", "Sdf", "UsdShade", "Vt"))
    kinds = sdf.ValueTypeNames
    uvs = geom.PrimvarsAPI(mesh).CreatePrimvar("st", kinds.TexCoord2fArray, geom.Tokens.vertex)
    uvs.Set(types.Vec2fArray.FromNumpy(np.ascontiguousarray(placed.mesh.uvs, dtype=np.float32)))
    material = shade.Material.Define(stage, "/object/surface")
    shader = shade.Shader.Define(stage, "/object/surface/shader")
    shader.CreateIdAttr("UsdPreviewSurface")
    shader.CreateInput("roughness", kinds.Float).Set(float(style.roughness))
    shader.CreateInput("metallic", kinds.Float).Set(0.0)
    reader = shade.Shader.Define(stage, "/object/surface/uvs")
    reader.CreateIdAttr("UsdPrimvarReader_float2")
    reader.CreateInput("varname", kinds.String).Set("st")
    place = reader.CreateOutput("result", kinds.Float2)
    assert placed.mesh.texture is not None  # the caller has looked
    pictures = {"color": (placed.mesh.texture, "diffuseColor", kinds.Color3f, "sRGB")}
    if style.normal_map is not None:
        pictures["normal"] = (style.normal_map, "normal", kinds.Normal3f, "raw")
    for name, (picture, target, kind, space) in pictures.items():
        (folder / f"{name}.png").write_bytes(png_bytes(picture))
        texture = shade.Shader.Define(stage, f"/object/surface/{name}")
        texture.CreateIdAttr("UsdUVTexture")
        texture.CreateInput("file", kinds.Asset).Set(f"./{name}.png")
        texture.CreateInput("sourceColorSpace", kinds.Token).Set(space)
        texture.CreateInput("st", kinds.Float2).ConnectToSource(place)
        if name == "normal":
            _unpack_normals(texture, kinds)
        result = texture.CreateOutput("rgb", kinds.Float3)
        shader.CreateInput(target, kind).ConnectToSource(result)
    material.CreateSurfaceOutput().ConnectToSource(shader.CreateOutput("surface", kinds.Token))
    shade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)


def _unpack_normals(texture: Any, kinds: Any) -> None:
    """Bytes 0 to 255 stand for -1 to 1."""
    vectors = importlib.import_module("pxr.Gf")
    texture.CreateInput("scale", kinds.Float4).Set(vectors.Vec4f(2, 2, 2, 1))
    texture.CreateInput("bias", kinds.Float4).Set(vectors.Vec4f(-1, -1, -1, 0))
