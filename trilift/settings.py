"""Every choice that a lift offers, checked once."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

from multiview.errors import SettingsError

from .profiles import PROFILE_SETTINGS, PROFILES, Profile

# The same as lrm.meshfile.FORMATS (a test holds them together); repeated so that --help does not load torch.
FORMATS = ("glb", "obj", "ply", "stl", "usdz", "gltf", "3mf")
LIFT_FORMATS = (*FORMATS, "splats")
"""Of a lift, which has a field to take Gaussian splats from, beside its mesh."""
REMESH_WAYS = ("off", "isotropic", "quads")
TURNTABLE_FORMATS = ("gif", "webp", "png", "mp4")
BACKGROUNDS = ("auto", "keep", "remove")
THRESHOLD_WORDS = ("auto", "median")
# The same as multiview.generator.SCHEDULERS, for the same reason.
SCHEDULERS = ("ddim", "dpm++", "unipc")
TEXTURES = ("vertex", "baked")
PROJECTIONS = ("auto", "on", "off")
BAKED_FACES = 20_000
"""Triangles of a mesh with a baked texture, unless asked otherwise: what unwraps in seconds."""
MAX_TEXTURE_SIZE = 8192
MAX_RESOLUTION = 2048
MAX_RING = 64
MAX_BEST_OF = 64
MAX_LODS = 4
MAX_TURNTABLE_FRAMES = 360
MAX_SMOOTH = 200
# What shapes generated views; the names that `LiftSettings` and `ViewSettings` share.
_GENERATING = ("view_steps", "guidance", "scheduler", "view_batch", "parity")
_LENGTH_UNITS = {"": 1.0, "m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254, "ft": 0.3048}
_MEMORY_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class _Settings:
    """What both kinds of settings can do."""

    def replaced(self, **changes: Any) -> Self:
        """The same settings with ``changes``.

        Raises:
            SettingsError: an unknown name (the nearest known one is given), or a value out of range.
        """
        known = [f.name for f in dataclasses.fields(cast(Any, self))]
        named = tuple(changes)
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1, 0.5)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(known)}."
                raise SettingsError(f"unknown setting {name!r}. {hint}")
        if changes.get("profile", getattr(self, "profile", None)) != getattr(self, "profile", None):
            changes = _without_profile(self, changes)
        if "given" in known and "given" not in changes:
            # Whoever names a setting means it, its default too: a profile leaves it alone.
            said = (name for name in PROFILE_SETTINGS if name in named)
            changes["given"] = tuple(dict.fromkeys((*getattr(self, "given", ()), *said)))
        if changes.get("views_dir") is not None:
            changes["views_dir"] = str(changes["views_dir"])
        for name, value in changes.items():
            if isinstance(value, list):
                changes[name] = tuple(value)
        return cast(Self, dataclasses.replace(cast(Any, self), **changes))

    def as_record(self) -> dict[str, Any]:
        """All settings as plain JSON values, in the order of the attributes.

        ``given`` is left out: the values are what came of it, and ``replaced(**record)`` names all of them.
        """
        values = dataclasses.asdict(cast(Any, self))
        values.pop("given", None)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True)
class ViewSettings(_Settings):
    """How views are made of one photo; the defaults are those of ``trilift views``.

    Attributes:
        background, foreground_ratio, elevation: see `LiftSettings`.
        cameras: from where, for generators that can look from anywhere (Zero123): ``instantmesh`` for the six views
            that InstantMesh was trained on, or ``ring:N`` for N views around, at ``elevations`` or else the photo's.
        azimuths: the same one by one: degrees relative to the photo's camera, toward its right.
        elevations: one above the horizon for each azimuth, or one for all; the photo's own when left out.
        reuse_steps: N runs the networks' deep layers in one of N steps and reuses what they found in the others, 1 to
            8; faster, other views (``python -m benchmarks views --reuse``). 1 runs all of them always.
        compile: run the networks through `torch.compile`, where it works; changes rounding alone.
        view_steps: denoising steps, 1 to 1000; None for the model's own number.
        guidance: how strongly the photo is followed, 0 or more; None for the model's own.
        scheduler: of `SCHEDULERS`; None for the model's own.
        view_batch: views in one pass through the network; changes memory, not what comes out (but for rounding).
        parity: sample exactly as the published program does, quirks and all.
        seed: see `LiftSettings`.

    Raises:
        SettingsError: a value out of range, or two that exclude each other.
    """

    background: Literal["auto", "keep", "remove"] = "auto"
    foreground_ratio: float | None = None
    elevation: float | None = None
    cameras: str | None = None
    azimuths: tuple[float, ...] | None = None
    elevations: tuple[float, ...] | None = None
    reuse_steps: int = 1
    compile: bool = False
    view_steps: int | None = None
    guidance: float | None = None
    scheduler: Literal["ddim", "dpm++", "unipc"] | None = None
    view_batch: int | None = None
    parity: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _check_photo(self)
        _check_generating(self)
        _whole("reuse_steps", self.reuse_steps, 1, 8)
        if self.reuse_steps > 1 and self.parity:
            raise SettingsError(f"reuse_steps={self.reuse_steps} and parity exclude each other. Give one.")
        _check_switch("compile", self.compile)
        if self.cameras is not None:
            ring_count(self.cameras)
            if self.azimuths is not None:
                raise SettingsError(f"cameras={self.cameras} and azimuths exclude each other. Give one.")
        _check_angles(self)

    @property
    def asks_for_cameras(self) -> bool:
        """Whether it says from where the views shall be."""
        return not self.cameras is self.azimuths is self.elevations is None


@dataclass(frozen=True)
class SaveSettings(_Settings):
    """Which files are written of an asset, and how; the names are those of `LiftSettings`, which explains them.

    Raises:
        SettingsError: a value out of range, or two that exclude each other.
    """

    formats: tuple[str, ...] = ("glb",)
    profile: str | None = None
    height: float | None = None
    scale: float | None = None
    roughness: float = 0.9
    lods: int = 0
    splats: int = 100_000
    turntable: bool = False
    turntable_formats: tuple[str, ...] | None = None
    turntable_frames: int = 36
    turntable_size: int = 320
    turntable_elevation: float = 15.0
    turntable_of: Literal["mesh", "field"] = "mesh"
    turntable_transparent: bool = False
    sheet: bool = False

    def __post_init__(self) -> None:
        _take_profile(self)
        _check_saving(self)

    @property
    def for_program(self) -> Profile | None:
        """What ``profile`` names."""
        return None if self.profile is None else PROFILES[self.profile]


_SAVING = tuple(f.name for f in dataclasses.fields(SaveSettings))


@dataclass(frozen=True)
class LiftSettings(_Settings):
    """How one photo is lifted; the defaults are those of the command line.

    Attributes:
        resolution: samples per axis of the mesh's lattice, 16 to 2048.
        threshold: density at which the surface is taken, > 0; ``auto`` for the field's own level, or ``median`` for the
            median of its densities on a coarse grid, at which every field has a surface (to look into untrained ones;
            a field that is mostly empty keeps its own level).
        background: ``auto`` uses a mask file or a real alpha, else removes the background; ``keep`` takes the whole
            picture; ``remove`` removes the background even when the picture has an alpha.
        foreground_ratio: longest side of the object's box / side of the conditioning image, 0.2 to 1; None for what the
            model was trained with.
        elevation: elevation of the photograph's camera in degrees, -90 to 90; None lets the model estimate it.
        fov: full vertical field of view of the *photograph* in degrees, 1 to 150; None for the model's assumption.
        views_dir: folder (or file) of pictures with cameras, for models that take views; None for the photo alone.
        photos: more photos of the same object, each ``SIDE=FILE`` with SIDE front, right, back, left or degrees; for
            models that take views (`trilift.sidephotos`).
        best_of: lifts to choose from, 1 to 64: other seeds and, where the elevation is estimated, others about it.
        best_of_seconds: no further lift is begun after so long, > 0.
        view_steps, guidance, scheduler, view_batch, parity: of generated views, see `ViewSettings`.
        upright: ``auto`` stands the object upright by the elevation, ``off`` leaves it in the camera's pitch.
        faces: at most so many triangles, by quadric decimation, at least 4; None keeps all.
        texture: ``vertex``: colours sit at the vertices; ``baked``: in a picture on the unwrapped surface, of at most
            `BAKED_FACES` triangles unless ``faces`` says otherwise.
        texture_size: texels per side of that picture, 16 to 8192.
        normal_map: whether a baked texture comes with the normals of the mesh before its triangles were reduced.
        project: whether the photo itself is painted on what it sees (`trilift.texture`): ``auto`` unless the threshold
            is ``median``, where the surface says nothing; ``on`` always, ``off`` never.
        formats: file formats to write, names of `LIFT_FORMATS`.
        turntable: whether to write a turntable.
        seed: the one source of random numbers, 0 to 2^63 - 1; models that draw none only record it.
        height: height of the exported object (up axis) in metres, > 0; see `parse_length`.
        scale: metres for each world unit, > 0; not together with ``height``.
        profile: of `trilift.profiles.PROFILES`; it takes the place of ``faces``, ``texture``, ``keep`` and
            ``watertight`` where they are at their defaults and not ``given``, and adds its formats.
        given: names of those four that were chosen though they are at their defaults, which a value alone cannot tell;
            `replaced` and the command line fill it in. Only names that hold a profile off are kept.
        keep: pieces with a smaller share of the largest piece's surface are dropped, 0 (none) to 1 (all but the
            largest); inner shells always are.
        smooth: passes of smoothing that keeps the volume, 0 to 200.
        remesh: ``isotropic``: triangles of even size; ``quads``: in pairs, by Instant Meshes (extra ``quads``).
        watertight: whether to make sure, through manifold3d, that the mesh is closed, manifold and outward.
        lods: further levels of detail, 0 to 4, each with half the triangles (and half the texels a side,
            where its charts fit into them) of the one before.
        roughness: of the material, 0 to 1.
        splats: how many Gaussians the format ``splats`` writes at most, 100 to 5,000,000.
        turntable_formats: of `TURNTABLE_FORMATS`; None for gif, and mp4 where the extra ``video`` is installed.
        turntable_frames: pictures of a full turn, 1 to 360.
        turntable_size: pixels per side, 16 to 4096.
        turntable_elevation: of the cameras in degrees, -89 to 89.
        turntable_of: ``mesh``, or the ``field``, volume rendered (slower, as the model sees it).
        turntable_transparent: alpha in place of white, in formats that have it.
        sheet: whether to write ``sheet.png``: front, side, behind and top.

    Raises:
        SettingsError: a value out of range, or two that exclude each other.
    """

    resolution: int = 256
    threshold: float | Literal["auto", "median"] = "auto"
    background: Literal["auto", "keep", "remove"] = "auto"
    foreground_ratio: float | None = None
    elevation: float | None = None
    fov: float | None = None
    views_dir: str | None = None
    photos: tuple[str, ...] = ()
    best_of: int = 1
    best_of_seconds: float = 120.0
    view_steps: int | None = None
    guidance: float | None = None
    scheduler: Literal["ddim", "dpm++", "unipc"] | None = None
    view_batch: int | None = None
    parity: bool = False
    upright: Literal["auto", "off"] = "auto"
    faces: int | None = None
    texture: Literal["vertex", "baked"] = "vertex"
    texture_size: int = 1024
    normal_map: bool = False
    project: Literal["auto", "on", "off"] = "auto"
    formats: tuple[str, ...] = ("glb",)
    turntable: bool = False
    seed: int = 0
    height: float | None = None
    scale: float | None = None
    profile: str | None = None
    keep: float = 0.01
    smooth: int = 0
    remesh: Literal["off", "isotropic", "quads"] = "off"
    watertight: bool = False
    lods: int = 0
    roughness: float = 0.9
    splats: int = 100_000
    turntable_formats: tuple[str, ...] | None = None
    turntable_frames: int = 36
    turntable_size: int = 320
    turntable_elevation: float = 15.0
    turntable_of: Literal["mesh", "field"] = "mesh"
    turntable_transparent: bool = False
    sheet: bool = False
    given: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_given(self.given)
        _take_profile(self)
        _whole("resolution", self.resolution, 16, MAX_RESOLUTION)
        if self.threshold not in THRESHOLD_WORDS:
            _number("threshold", self.threshold, 0.0, math.inf, open_low=True, also=" or ".join(THRESHOLD_WORDS))
        _one_of("upright", self.upright, ("auto", "off"))
        _one_of("texture", self.texture, TEXTURES)
        _whole("texture_size", self.texture_size, 16, MAX_TEXTURE_SIZE)
        _one_of("project", self.project, PROJECTIONS)
        _check_photo(self)
        _check_generating(self)
        _number("fov", self.fov, 1.0, 150.0)
        _whole("best_of", self.best_of, 1, MAX_BEST_OF)
        _number("best_of_seconds", self.best_of_seconds, 0.0, math.inf, open_low=True)
        _check_side_photos(self)
        if self.faces is not None:
            _whole("faces", self.faces, 4, 2**31 - 1)
        _number("keep", self.keep, 0.0, 1.0, needed=True)
        _whole("smooth", self.smooth, 0, MAX_SMOOTH)
        _one_of("remesh", self.remesh, REMESH_WAYS)
        _check_switch("watertight", self.watertight)
        _check_switch("normal_map", self.normal_map)
        if self.normal_map and self.texture != "baked":
            raise SettingsError("normal_map: lies on an unwrapped surface. Ask for --texture baked, too.")
        _check_saving(self)

    def saving(self) -> SaveSettings:
        """What these settings say about files."""
        return SaveSettings(**{name: getattr(self, name) for name in _SAVING})

    @property
    def face_budget(self) -> int | None:
        """Triangles at most: ``faces``, or `BAKED_FACES` for a baked texture."""
        return BAKED_FACES if self.faces is None and self.texture == "baked" else self.faces

    @property
    def texels(self) -> int:
        """Of the texture that is baked; 0 without one."""
        return self.texture_size**2 if self.texture == "baked" else 0

    @property
    def projects(self) -> bool:
        """Whether pictures are painted onto the surface."""
        return self.project == "on" or (self.project == "auto" and self.threshold != "median")

    def generating(self) -> dict[str, Any]:
        """Those settings that are about generated views and differ from their defaults."""
        plain = LiftSettings()
        return {name: getattr(self, name) for name in _GENERATING if getattr(self, name) != getattr(plain, name)}

    def view_settings(self) -> ViewSettings:
        """What these settings say to a view generator."""
        names = ("background", "foreground_ratio", "elevation", "seed", *_GENERATING)
        return ViewSettings(**{name: getattr(self, name) for name in names})


def ring_count(cameras: str) -> int:
    """How many views ``ring:N`` asks for; 0 for ``instantmesh``.

    Raises:
        SettingsError: neither of the two, or N is not from 1 to `MAX_RING`.
    """
    if cameras == "instantmesh":
        return 0
    found = re.fullmatch(r"ring:([0-9]{1,4})", cameras)
    if found is None or not 1 <= int(found[1]) <= MAX_RING:
        raise SettingsError(f"cameras={cameras!r}: expected instantmesh, or ring:N with N from 1 to {MAX_RING}.")
    return int(found[1])


class TooLittleMemoryError(SettingsError):
    """What ``--max-memory`` allows is not enough.

    Attributes:
        limit_bytes: what this process was allowed.
        needs_bytes: what would be enough.
    """

    def __init__(self, message: str, limit_bytes: int = 0, needs_bytes: int = 0) -> None:
        super().__init__(message)
        self.limit_bytes, self.needs_bytes = limit_bytes, needs_bytes


def parse_memory(text: str | int) -> int:
    """``6GB``, ``500MB``, ``4GiB`` or a plain number of bytes → bytes; GB are 10^9, GiB 2^30.

    Raises:
        SettingsError: it is none of these, or not positive.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = found[2].lower() if found else None
    if found is None or unit is None or unit not in _MEMORY_UNITS or float(found[1]) <= 0:
        raise SettingsError(f"max_memory={text!r}: expected bytes such as 6GB, 500MB, 4GiB or 6000000000.")
    return int(float(found[1]) * _MEMORY_UNITS[unit])


def parse_length(text: str | float) -> float:
    """``30cm``, ``1.2m``, ``250mm``, ``12in``, ``5ft`` or a plain number of metres → metres.

    Raises:
        SettingsError: it is none of these, or not positive.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = found[2].lower() if found else None
    if found is None or unit is None or unit not in _LENGTH_UNITS or float(found[1]) <= 0:
        units = ", ".join(name for name in _LENGTH_UNITS if name)
        raise SettingsError(f"height={text!r}: expected a length above 0 such as 30cm, 1.2m or 0.3; units are {units}.")
    return float(found[1]) * _LENGTH_UNITS[unit]


def parse_keep(text: str | float) -> float:
    """``largest``, ``all`` or a share such as ``5%`` → the smallest share of the largest piece's surface that stays.

    Raises:
        SettingsError: it is none of these.
    """
    words = {"largest": 1.0, "all": 0.0}
    if text in words:
        return words[str(text)]
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*%\s*", str(text))
    if found is None or float(found[1]) > 100:
        raise SettingsError(f"keep={text!r}: expected largest, all, or a share from 0% to 100% such as 5%.")
    return float(found[1]) / 100


def _without_profile(settings: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """``changes`` that also take back what the profile of ``settings`` had put in the place of defaults."""
    if settings.profile is None:
        return changes
    profile = PROFILES[settings.profile]
    plain = {field.name: field.default for field in dataclasses.fields(settings)}
    undone = {
        name: plain[name] for name, value in profile.settings().items()
        if name in plain and value is not None and getattr(settings, name) == value
    }  # fmt: skip
    left = tuple(name for name in settings.formats if name not in profile.formats)
    return {**undone, "formats": left or plain["formats"], **changes}


def _check_given(given: Any) -> None:
    if not isinstance(given, tuple) or not set(given) <= set(PROFILE_SETTINGS):
        raise SettingsError(f"given={given!r}: expected names of {', '.join(PROFILE_SETTINGS)}.")


def _take_profile(settings: LiftSettings | SaveSettings) -> None:
    """Put what a profile wants in the place of defaults that nobody chose, and add its formats."""
    if settings.profile is None:
        if getattr(settings, "given", ()):
            object.__setattr__(settings, "given", ())
        return
    _one_of("profile", settings.profile, tuple(PROFILES))
    profile, set_ = PROFILES[settings.profile], object.__setattr__  # the dataclass is frozen for others
    if isinstance(settings.formats, tuple):
        more = tuple(name for name in profile.formats if name not in settings.formats)
        set_(settings, "formats", settings.formats + more)
    given, kept = getattr(settings, "given", ()), []
    for field in dataclasses.fields(settings):
        wanted = profile.settings().get(field.name)
        if field.name == "faces" and wanted is not None and getattr(settings, "texture", None) == "baked":
            wanted = min(wanted, BAKED_FACES)
        if wanted in (None, field.default) or getattr(settings, field.name) != field.default:
            continue
        if field.name in given:
            kept.append(field.name)
        else:
            set_(settings, field.name, wanted)
    if given:
        set_(settings, "given", tuple(kept))


def _check_saving(settings: LiftSettings | SaveSettings) -> None:
    """What decides the files."""
    _check_formats(settings.formats)
    _number("height", settings.height, 0.0, math.inf, open_low=True)
    _number("scale", settings.scale, 0.0, math.inf, open_low=True)
    if settings.height is not None and settings.scale is not None:
        raise SettingsError(f"height={settings.height:g} and scale={settings.scale:g} exclude each other. Give one.")
    _number("roughness", settings.roughness, 0.0, 1.0, needed=True)
    _whole("lods", settings.lods, 0, MAX_LODS)
    _whole("splats", settings.splats, 100, 5_000_000)
    _whole("turntable_frames", settings.turntable_frames, 1, MAX_TURNTABLE_FRAMES)
    _whole("turntable_size", settings.turntable_size, 16, 4096)
    _number("turntable_elevation", settings.turntable_elevation, -89.0, 89.0, needed=True)
    _one_of("turntable_of", settings.turntable_of, ("mesh", "field"))
    for name in ("turntable", "turntable_transparent", "sheet"):
        _check_switch(name, getattr(settings, name))
    if settings.turntable_formats is not None:
        if not isinstance(settings.turntable_formats, tuple) or not settings.turntable_formats:
            wanted = ", ".join(TURNTABLE_FORMATS)
            raise SettingsError(f"turntable_formats={settings.turntable_formats!r}: expected one or more of {wanted}.")
        for name in settings.turntable_formats:
            _one_of("turntable_formats", name, TURNTABLE_FORMATS)


def _check_switch(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise SettingsError(f"{name}={value!r}: expected True or False.")


def _check_photo(settings: LiftSettings | ViewSettings) -> None:
    """What every way of taking an object out of a photo has."""
    _one_of("background", settings.background, BACKGROUNDS)
    _number("foreground_ratio", settings.foreground_ratio, 0.2, 1.0)
    _number("elevation", settings.elevation, -90.0, 90.0)
    _whole("seed", settings.seed, 0, 2**63 - 1)


def _check_generating(settings: LiftSettings | ViewSettings) -> None:
    """What generated views have."""
    if settings.view_steps is not None:
        _whole("view_steps", settings.view_steps, 1, 1000)
    _number("guidance", settings.guidance, 0.0, math.inf)
    if settings.scheduler is not None:
        _one_of("scheduler", settings.scheduler, SCHEDULERS)
    if settings.view_batch is not None:
        _whole("view_batch", settings.view_batch, 1, 1 << 16)
    if not isinstance(settings.parity, bool):
        raise SettingsError(f"parity={settings.parity!r}: expected True or False.")


def _check_side_photos(settings: LiftSettings) -> None:
    """More photos of the object, which exclude a folder of views."""
    if not isinstance(settings.photos, tuple) or not all(isinstance(text, str) for text in settings.photos):
        raise SettingsError(f"photos={settings.photos!r}: expected texts such as back=b.png.")
    for text in settings.photos:
        side, equals, path = text.partition("=")
        if not (side and equals and path):
            raise SettingsError(f"photos={text!r}: expected SIDE=FILE, such as back=b.png or 135=b.png.")
    if settings.photos and settings.views_dir is not None:
        raise SettingsError(f"--photo and --views-dir {settings.views_dir} exclude each other. Give one.")


def _check_angles(settings: ViewSettings) -> None:
    """Azimuths and elevations that go together."""
    for name, low, high in (("azimuths", -3600.0, 3600.0), ("elevations", -90.0, 90.0)):
        values = getattr(settings, name)
        if values is not None and (not isinstance(values, tuple) or not values):
            raise SettingsError(f"{name}={values!r}: expected one or more degrees.")
        for value in values or ():
            _number(name, value, low, high)
            if value is None:
                raise SettingsError(f"{name}={values!r}: expected degrees.")
    if settings.elevations is None:
        return
    if settings.azimuths is None and settings.cameras is None:
        raise SettingsError("elevations belong to azimuths, or to cameras=ring:N. Give one of these, too.")
    if settings.cameras == "instantmesh":
        raise SettingsError("cameras=instantmesh has its own elevations. Leave elevations out, or give azimuths.")
    count = len(settings.azimuths) if settings.azimuths is not None else ring_count(settings.cameras or "")
    if len(settings.elevations) not in (1, count):
        raise SettingsError(
            f"elevations: expected 1 or {count}, one for each azimuth, found {len(settings.elevations)}."
        )


def _check_formats(formats: Any) -> None:
    if not isinstance(formats, tuple) or not formats:
        raise SettingsError(f"formats={formats!r}: expected a list of one or more of {', '.join(LIFT_FORMATS)}.")
    for name in formats:
        _one_of("formats", name, LIFT_FORMATS)
    if len(set(formats)) != len(formats):
        raise SettingsError(f"formats={','.join(formats)} names one format twice. Name each once.")


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingsError(f"{name}={value!r}: expected {' or '.join(choices)}.")


def _whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingsError(f"{name}={value!r}: expected a whole number from {low} to {high}.")


def _number(
    name: str,
    value: Any,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    also: str | None = None,
    needed: bool = False,
) -> None:
    """A finite number in [low, high] (or above ``low`` when ``open_low``); None passes, unless it is ``needed``."""
    if value is None and not needed:
        return
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value > high or value < low or (open_low and value == low):
        span = f"a number above {low:g}" if math.isinf(high) else f"a number from {low:g} to {high:g}"
        raise SettingsError(f"{name}={value!r}: expected {also + ' or ' if also else ''}{span}.")
