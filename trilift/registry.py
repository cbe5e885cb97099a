"""Every weight set that this project knows, as data.

``ready`` rows can be used today; ``planned`` ones would be weights whose loaders have not come yet. Their facts (files,
sizes, hashes, licences) are those of their publishers, and what is not known stays None.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from multiview.errors import WeightsError
from multiview.hub import HubFile, cached_file, is_hub_id

EMBEDDED = Path(__file__).parent / "weights"
EMBEDDED_RATIO = 0.85
"""Of the object's box and the picture, as the embedded model wants it."""
WEIGHTS_FILE = "model.safetensors"
OTHER_FILES = ("model.ckpt", "pytorch_model.bin")
"""What a reconstruction model's weights may be called on the hub where there is no `WEIGHTS_FILE`, the best first."""
Commercial = Literal["yes", "no", "conditions", "unknown"]


@dataclass(frozen=True)
class WeightSet:
    """One row of the table.

    Attributes:
        name: what `ImageTo3D.from_pretrained` takes.
        what: one line for people.
        family: whose architecture it is.
        stage: ``reconstruction`` (picture or views → field) or ``views`` (picture → more views).
        repository: repository on the hub, None for embedded weights or where the weights lie elsewhere.
        revision: commit of that repository that is fetched unless another is asked for; None where the full name of the
            commit is not known: then it is the main branch, and the sum says whether the file is the known one.
        file: main file of the weights in the repository or folder; None for a folder of several.
        config_file: its sizes, beside it; None where the publisher has no such file.
        sha256: of that file.
        size_bytes: of that file, as precisely as its publisher states it.
        licence: of the weights.
        commercial: whether they may be used commercially; ``conditions``: the licence sets terms, read them.
        memory_bytes: peak memory of a lift, or of a generator's run, in fp32 on the CPU.
        status: ``ready`` or ``planned``.
        needs_views: how many views it wants; 1 is the photo alone. 0 for view generators.
        options: what the weights do not say themselves and their loader must be told: ``pose_rule`` of the Zero123
            family; ``version`` and ``unet`` of Zero123++.
        page: where their publisher has them when that is not the repository.
    """

    name: str
    what: str
    family: str
    stage: Literal["reconstruction", "views"]
    repository: str | None
    revision: str | None
    file: str | None
    config_file: str | None
    sha256: str | None
    size_bytes: int | None
    licence: str
    commercial: Commercial
    memory_bytes: int | None
    status: Literal["ready", "planned"]
    needs_views: int
    options: Mapping[str, str] = field(default_factory=dict)
    page: str | None = None

    @property
    def embedded_folder(self) -> Path:
        """Where the weights lie when they come with the package."""
        return EMBEDDED / self.family


@dataclass(frozen=True)
class ModelInfo:
    """A weight set and whether it can be used on this machine without a network.

    Attributes:
        weights: the row of the table.
        path: the weights file on this machine, None when it is not here.
    """

    weights: WeightSet
    path: Path | None

    @property
    def here(self) -> bool:
        """Whether the weights are on this machine."""
        return self.path is not None

    def as_json(self) -> dict[str, Any]:
        """All facts as plain JSON values; what is not known is null."""
        return {**asdict(self.weights), "here": self.here, "path": None if self.path is None else str(self.path)}

    def as_cells(self) -> tuple[str, ...]:
        """The facts that the command line's table shows, in the order of `CELLS`."""
        row = self.weights
        size = self.path.stat().st_size if self.path is not None else row.size_bytes
        here = "yes" if self.here else "no"
        amounts = _megabytes(size), _megabytes(row.memory_bytes)
        return row.name, row.stage, row.status, here, *amounts, row.licence, row.commercial, row.what


CELLS = ("name", "stage", "status", "here", "size", "memory", "licence", "commercial", "what")


def _megabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:.0f} MB"


@dataclass(frozen=True)
class Source:
    """Where the weights that a user named are, or come from.

    Attributes:
        name: what to call them.
        path: a folder or file on this machine; None when they come from the hub.
        repository: on the hub, None for a folder or file.
        row: of the table, when the table knows them by name or by repository.
    """

    name: str
    path: Path | None = None
    repository: str | None = None
    row: WeightSet | None = None


def _memory(size_bytes: int) -> int:
    """About the peak memory of a lift in fp32 on the CPU: the weights and 1 GB (0.74 for TripoSR and a small mesh)."""
    return size_bytes + 1_000_000_000


_PLUS_PARAMETERS = 865_910_724 + 83_653_863 + 632_076_800
"""Zero123++: UNet and VAE of Stable Diffusion 2, CLIP ViT-H/14; the text encoder is asked once and let go."""


def _generator_memory(parameters: int, working_bytes: int) -> int:
    """About the peak memory of a generator in fp32 on the CPU: its weights, what its networks keep while they work (as
    `multiview.networks` counts it), and 0.7 GB of libraries."""
    return 4 * parameters + working_bytes + 700_000_000


def _openlrm(data: str, size: str, size_bytes: int) -> WeightSet:
    """OpenLRM 1.1: six sets of one architecture; sizes are parameters * 4 bytes, without the file's header."""
    trained_on = {"obj": "Objaverse", "mix": "Objaverse and MVImgNet"}[data]
    return WeightSet(
        name=f"openlrm-{data}-{size}", what=f"OpenLRM 1.1 {size}, trained on {trained_on}", family="openlrm",
        stage="reconstruction", repository=f"zxhezexin/openlrm-{data}-{size}-1.1", revision=None,
        file="model.safetensors", config_file="config.json", sha256=None, size_bytes=size_bytes,
        licence="CC-BY-NC-4.0", commercial="no", memory_bytes=_memory(size_bytes), status="ready", needs_views=1,
    )  # fmt: skip


def _instantmesh(size: str, size_bytes: int, sha256: str) -> WeightSet:
    """InstantMesh's reconstruction weights are Apache-2.0; the views that they were made for come from Zero123++, whose
    weights are not for commercial use, so that the plain yes holds for one's own views alone."""
    return WeightSet(
        name=f"instantmesh-{size}", what=f"InstantMesh NeRF {size}, from six views", family="instantmesh",
        stage="reconstruction", repository="TencentARC/InstantMesh", revision=None, file=f"instant_nerf_{size}.ckpt",
        config_file=None, sha256=sha256, size_bytes=size_bytes, memory_bytes=_memory(size_bytes), status="ready",
        needs_views=6, commercial="conditions", licence="Apache-2.0, made for non-commercial views (Zero123++)",
    )  # fmt: skip


def _zero123(
    name: str, what: str, pose_rule: str, repository: str, file: str, *, licence: str, commercial: Commercial,
    size_bytes: int | None = None, sha256: str | None = None, page: str | None = None,
) -> WeightSet:  # fmt: skip
    """One architecture, 1,247,746,219 parameters; training checkpoints are several times larger than what is used."""
    return WeightSet(
        name=name, what=what, family="zero123", stage="views", repository=repository, revision=None, file=file,
        config_file=None, sha256=sha256, size_bytes=size_bytes, licence=licence, commercial=commercial,
        memory_bytes=_generator_memory(1_247_746_219, 205_000_000), status="ready", needs_views=0,
        options={"pose_rule": pose_rule}, page=page,
    )  # fmt: skip


def _zero123plus(
    version: str, *, name: str | None = None, what: str = "Zero123++: six fixed views of the photo's object",
    repository: str | None = None, file: str | None = None, sha256: str | None = None,
    licence: str = "CC-BY-NC-4.0", unet: str | None = None,
) -> WeightSet:  # fmt: skip
    return WeightSet(
        name=name or f"zero123plus-v{version}", what=what, family="zero123plus",
        stage="views", repository=repository or f"sudo-ai/zero123plus-v{version}", revision=None, file=file,
        config_file=None, sha256=sha256, size_bytes=None, licence=licence, commercial="no",
        memory_bytes=_generator_memory(_PLUS_PARAMETERS, 1_920_000_000), status="ready", needs_views=0,
        options={"version": version} | ({} if unet is None else {"unet": unet}),
    )  # fmt: skip


def _tiny_views(name: str, what: str, answer: str) -> WeightSet:
    """A row of the embedded view generator; ``answer`` as in `trilift.embeddedviews`."""
    return WeightSet(
        name=name, what=what, family="tiny-views", stage="views", repository=None, revision=None, file=WEIGHTS_FILE,
        config_file="config.json", sha256="2d12b4b929b630e32b776e546bef45fe120ea45e3402b9f0d7c37f61c9e64769",
        size_bytes=8_076_328, licence="Apache-2.0", commercial="yes", memory_bytes=560_000_000, status="ready",
        needs_views=0, options={"answer": answer},
    )  # fmt: skip


WEIGHT_SETS: tuple[WeightSet, ...] = (
    WeightSet(
        name="tiny", what="embedded: small model trained by this project on CC0 objects", family="tiny",
        stage="reconstruction", repository=None, revision=None, file=WEIGHTS_FILE, config_file="config.json",
        sha256="be81afd54a850a5d486b0ce93220d48a61cdea42f83428a23c670f01ba83f858", size_bytes=14_144_132,
        licence="Apache-2.0", commercial="yes", memory_bytes=490_000_000, status="ready", needs_views=1,
    ),
    _tiny_views("tiny-views", "embedded: six views drawn by a small diffusion model of this project", "drawn"),
    _tiny_views("tiny-views-mean", "the same weights as a regressor: the mean of all views that fit", "mean"),
    WeightSet(
        name="triposr", what="TripoSR", family="triposr", stage="reconstruction", repository="stabilityai/TripoSR",
        revision="5b521936b01fbe1890f6f9baed0254ab6351c04a", file="model.ckpt", config_file="config.yaml",
        sha256="429e2c6b22a0923967459de24d67f05962b235f79cde6b032aa7ed2ffcd970ee", size_bytes=1_677_246_742,
        licence="MIT", commercial="yes", memory_bytes=_memory(1_677_246_742), status="ready", needs_views=1,
    ),
    _openlrm("obj", "small", 445_563_792),
    _openlrm("obj", "base", 1_040_807_888),
    _openlrm("obj", "large", 1_808_552_016),
    _openlrm("mix", "small", 445_563_792),
    _openlrm("mix", "base", 1_040_807_888),
    _openlrm("mix", "large", 1_808_552_016),
    _instantmesh("base", 1_253_151_890, "bcbfff8be8545f8206110f432afddedfb4311abc1146b843ab2bdb6678f8d9c9"),
    _instantmesh("large", 1_514_088_389, "530a344ea9b856e012492b9644ab73532ddf7c06d548f60c489e49a528322fb9"),
    _zero123(
        "zero123-105000", "Zero123, first release: any one view of the photo's object", "distance",
        "cvlab/zero123-weights", "105000.ckpt", licence="MIT", commercial="yes",
    ),
    _zero123(
        "zero123-165000", "Zero123 trained longer: any one view of the photo's object", "distance",
        "cvlab/zero123-weights", "165000.ckpt", licence="MIT", commercial="yes",
    ),
    _zero123(
        "zero123-xl", "Zero123-XL: any one view of the photo's object", "distance",
        # Its publisher has it on a server of his own; here is a copy, held to the sum.
        "thesudio/stable_zero_123_XL", "zero123-xl.ckpt", licence="MIT", commercial="yes", size_bytes=15_465_973_531,
        sha256="bc4ea2f8696ed96495a756e178cab659de807bbae2d2df18987cf61c44070696",
        page="https://zero123.cs.columbia.edu/assets/zero123-xl.ckpt",
    ),
    _zero123(
        "stable-zero123", "Stable Zero123: any one view of the photo's object", "polar",
        "stabilityai/stable-zero123", "stable_zero123.ckpt", size_bytes=8_580_000_000,
        licence="Stability AI Non-Commercial Research Community", commercial="no",
    ),
    _zero123(
        "stable-zero123-c", "Stable Zero123 C: trained on CC-BY and CC0 objects only", "polar",
        "stabilityai/stable-zero123", "stable_zero123_c.ckpt", size_bytes=8_580_000_000,
        licence="Stability AI Community", commercial="conditions",
    ),
    WeightSet(
        name="syncdreamer", what="SyncDreamer: sixteen consistent views at 30 degrees", family="syncdreamer",
        stage="views", repository="camenduru/SyncDreamer", revision=None, file="syncdreamer-pretrain.ckpt",
        config_file=None, sha256=None, size_bytes=5_570_000_000,
        licence="not stated by the publisher (code MIT)", commercial="unknown",
        memory_bytes=_generator_memory(1_353_766_827, 205_000_000), status="ready", needs_views=0,
    ),
    _zero123plus("1.1"),
    _zero123plus("1.2"),
    _zero123plus(
        "1.2", name="zero123plus-v1.2-instantmesh", what="InstantMesh's own UNet in Zero123++ 1.2: views on white",
        repository="TencentARC/InstantMesh", file="diffusion_pytorch_model.bin",
        sha256="9d78d78421d1feb6871d13e13e86ed8099628648d7d9c51ffca9015b7d5fa3c4", unet="instantmesh",
        licence="Apache-2.0 as published, made from CC-BY-NC-4.0 weights (Zero123++)",
    ),
)  # fmt: skip


def models() -> list[ModelInfo]:
    """Every known weight set, in the order of the table, and whether it is on this machine."""
    return [ModelInfo(row, _path_here(row)) for row in WEIGHT_SETS]


def ready_names() -> list[str]:
    """Names that can be used today."""
    return [row.name for row in WEIGHT_SETS if row.status == "ready"]


def find(name: str) -> WeightSet:
    """The row called ``name``.

    Raises:
        WeightsError: no such row; the nearest known names are given.
    """
    for row in WEIGHT_SETS:
        if row.name == name:
            return row
    known = [row.name for row in WEIGHT_SETS]
    near = difflib.get_close_matches(name.lower(), known, 3, 0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise WeightsError(
        f"{name!r} is not a known model and not a folder or file here. {hint}Ready today: {', '.join(ready_names())}; "
        "trilift models lists all, or give a folder, a file of weights, or owner/name on the hub."
    )


def find_sha256(sha256: str) -> WeightSet | None:
    """The row whose main file has this sum, whatever the file is called here."""
    return next((row for row in WEIGHT_SETS if row.sha256 == sha256), None)


def resolve(name_or_path: str | Path) -> Source:
    """Turn what a user named into a place of weights: a known name, a folder or file, or ``owner/name`` on the hub.

    A known name wins over a folder of the same name in the working directory; write ``./tiny`` for the folder. What
    exists here wins over the hub. ``NAME=PATH`` says that the folder or file at PATH holds the weights that the table
    calls NAME: their licence, and what their files do not say, then come from the table.

    Raises:
        WeightsError: unknown, planned, not in this installation, or a repository of which the table knows several sets.
    """
    name, path = str(name_or_path), Path(name_or_path)
    is_text = not isinstance(name_or_path, Path)
    if is_text and any(row.name == name for row in WEIGHT_SETS):
        return _known(find(name))
    if path.exists():
        return Source(path.resolve().name if path.is_dir() else path.stem, path)
    if is_text and any(name.startswith(f"{row.name}=") for row in WEIGHT_SETS):
        known, _, place = name.partition("=")
        return _said_to_be(find(known), Path(place))
    if is_text and is_hub_id(name):
        return _on_hub(name)
    if is_text and path.name == name and not path.suffix:
        find(name)  # always fails, with the nearest known names
    raise WeightsError(f"{path}: there is no such folder or file. Known by name: {', '.join(ready_names())}.")


def _said_to_be(row: WeightSet, path: Path) -> Source:
    """``NAME=PATH``; where the table has a sum, whoever reads the file holds it to that."""
    if path == Path() or not path.exists():
        raise WeightsError(f"{row.name}={path}: there is no folder or file {path}.")
    return Source(row.name, path, row=row)


def _known(row: WeightSet) -> Source:
    if row.status == "planned":
        raise WeightsError(
            f"{row.name}: planned, not yet available ({row.what}, {row.licence}). Ready today: "
            f"{', '.join(ready_names())}."
        )
    if row.repository is not None:
        return Source(row.name, repository=row.repository, row=row)
    if _path_here(row) is None:
        raise WeightsError(
            f"{row.name}: its weights {row.embedded_folder / WEIGHTS_FILE} are not in this installation. "
            "Install trilift again, or give a folder with config.json and model.safetensors."
        )
    return Source(row.name, row.embedded_folder, row=row)


def _on_hub(repository: str) -> Source:
    """A repository by name; where the table knows it, its row says what to fetch."""
    rows = [row for row in WEIGHT_SETS if row.repository == repository]
    if len(rows) > 1:
        raise WeightsError(f"{repository} holds several models. Name one: {', '.join(row.name for row in rows)}.")
    return _known(rows[0]) if rows else Source(repository.split("/")[1], repository=repository)


def _path_here(row: WeightSet) -> Path | None:
    """The weights file on this machine: in the package, or in the hub's cache."""
    if row.repository is None:
        path = row.embedded_folder / WEIGHTS_FILE
        return path if row.status == "ready" and path.is_file() else None
    if row.family == "zero123plus":
        return _plus_here(row)
    assert row.file is not None, "every other repository has one main file"
    names: tuple[str, ...] = (row.file,)
    if row.stage == "reconstruction" and row.sha256 is None:
        names += OTHER_FILES  # not every repository has the newer form
    found = _first_cached(row.repository, names, row.revision)
    return None if found is None else found.path


# One file of each that a published Zero123++ must have to be used; the small ones come with them.
_PLUS_FILES = {
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "vision_encoder": ("model.safetensors", "pytorch_model.bin"),
    "text_encoder": ("model.safetensors", "pytorch_model.bin"),
}


def _plus_here(row: WeightSet) -> Path | None:
    """The UNet of a Zero123++ of which every part is in the hub's cache; they may be in fp16 variants."""
    base = f"sudo-ai/zero123plus-v{row.options['version']}"
    parts: dict[str, HubFile | None] = {}
    for part, names in _PLUS_FILES.items():
        variants = (variant for name in names for variant in (name, name.replace(".", ".fp16.", 1)))
        parts[part] = _first_cached(base, tuple(f"{part}/{name}" for name in variants), None)
    if "unet" in row.options:
        assert row.repository is not None and row.file is not None
        parts["unet"] = cached_file(row.repository, row.file, row.revision)
    unet = parts["unet"]
    return unet.path if unet is not None and None not in parts.values() else None


def _first_cached(repository: str, names: tuple[str, ...], revision: str | None) -> HubFile | None:
    found = (cached_file(repository, name, revision) for name in names)
    return next((file for file in found if file is not None), None)
