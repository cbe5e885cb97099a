"""Every weight set that this project knows, as data.

``ready`` rows can be used today. ``planned`` rows are published weights whose loaders have not come yet. Their facts
(files, sizes, hashes, licences) are those of their publishers, and what is not known stays None.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from multiview.errors import WeightsError
from multiview.hub import cached_file, is_hub_id

EMBEDDED = Path(__file__).parent / "weights"
WEIGHTS_FILE = "model.safetensors"
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
        memory_bytes: peak memory of a lift.
        status: ``ready`` or ``planned``.
        needs_views: how many views it wants; 1 is the photo alone. 0 for view generators.
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

    @property
    def embedded_folder(self) -> Path:
        """Where the weights lie when they come with the package."""
        return EMBEDDED / self.name


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


def _zero123plus(version: str) -> WeightSet:
    return WeightSet(
        name=f"zero123plus-v{version}", what="Zero123++: six fixed views of the photo's object", family="zero123plus",
        stage="views", repository=f"sudo-ai/zero123plus-v{version}", revision=None, file=None, config_file=None,
        sha256=None, size_bytes=None, licence="CC-BY-NC-4.0", commercial="no", memory_bytes=None,
        status="planned", needs_views=0,
    )  # fmt: skip


WEIGHT_SETS: tuple[WeightSet, ...] = (
    WeightSet(
        name="tiny", what="embedded: small model trained by this project on CC0 objects", family="tiny",
        stage="reconstruction", repository=None, revision=None, file=WEIGHTS_FILE, config_file="config.json",
        sha256="be81afd54a850a5d486b0ce93220d48a61cdea42f83428a23c670f01ba83f858", size_bytes=14_144_132,
        licence="Apache-2.0", commercial="yes", memory_bytes=490_000_000, status="ready", needs_views=1,
    ),
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
    WeightSet(
        name="zero123-xl", what="Zero123-XL: any one view of the photo's object", family="zero123", stage="views",
        repository=None, revision=None, file="zero123-xl.ckpt", config_file=None,
        sha256="bc4ea2f8696ed96495a756e178cab659de807bbae2d2df18987cf61c44070696", size_bytes=15_465_973_531,
        licence="MIT", commercial="yes", memory_bytes=None, status="planned", needs_views=0,
    ),
    WeightSet(
        name="stable-zero123", what="Stable Zero123: any one view of the photo's object", family="zero123",
        stage="views", repository="stabilityai/stable-zero123", revision=None, file="stable_zero123.ckpt",
        config_file=None, sha256=None, size_bytes=8_580_000_000,
        licence="Stability AI Non-Commercial Research Community", commercial="no",
        memory_bytes=None, status="planned", needs_views=0,
    ),
    WeightSet(
        name="stable-zero123-c", what="Stable Zero123 C: trained on CC-BY and CC0 objects only", family="zero123",
        stage="views", repository="stabilityai/stable-zero123", revision=None, file="stable_zero123_c.ckpt",
        config_file=None, sha256=None, size_bytes=8_580_000_000,
        licence="Stability AI Community", commercial="conditions",
        memory_bytes=None, status="planned", needs_views=0,
    ),
    WeightSet(
        name="syncdreamer", what="SyncDreamer: sixteen consistent views at 30 degrees", family="syncdreamer",
        stage="views", repository="camenduru/SyncDreamer", revision=None, file="syncdreamer-pretrain.ckpt",
        config_file=None, sha256=None, size_bytes=5_570_000_000,
        licence="not stated by the publisher (code MIT)", commercial="unknown",
        memory_bytes=None, status="planned", needs_views=0,
    ),
    _zero123plus("1.1"),
    _zero123plus("1.2"),
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
    exists here wins over the hub.

    Raises:
        WeightsError: unknown, planned, not in this installation, or a repository of which the table knows several sets.
    """
    name, path = str(name_or_path), Path(name_or_path)
    is_text = not isinstance(name_or_path, Path)
    if is_text and any(row.name == name for row in WEIGHT_SETS):
        return _known(find(name))
    if path.exists():
        return Source(path.resolve().name if path.is_dir() else path.stem, path)
    if is_text and is_hub_id(name):
        return _on_hub(name)
    if is_text and path.name == name and not path.suffix:
        find(name)  # always fails, with the nearest known names
    raise WeightsError(f"{path}: there is no such folder or file. Known by name: {', '.join(ready_names())}.")


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
    if row.file is None:
        return None
    found = cached_file(row.repository, row.file, row.revision)
    return None if found is None else found.path
