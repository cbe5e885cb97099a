"""Follow a level set over a lattice, or look at every cell of it, and make triangles by marching cubes.

Cells are named by their lowest corner (padded index, see `lrm.lattice`). Corner c of a cell lies at offset
(c >> 2 & 1, c >> 1 & 1, c & 1). The case of a cell has bit c set where corner c is inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from multiview.errors import MeshError

from .lattice import OUTSIDE, Floats, Ints, Lattice, Scan, SparseSamples, diagonal_pairs, first_of_each, layers
from .pieces import outer_faces

CORNERS = np.array([[c >> 2 & 1, c >> 1 & 1, c & 1] for c in range(8)], np.int32)
_FACE_STEPS = np.array([[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1]], np.int32)
_ROUND_PAIRS = 1024  # coarse pairs that are searched along their path in the first round; twice as many in each other
_PASS = 1 << 19  # cells or vertices per pass over big arrays; changes memory only
NEAR_ENOUGH = 0.01  # of the difference along an edge: closer to the level, a vertex is not looked at again
SAME_PLACE = 0.02  # of an edge: colours seen no further from a vertex than this are its colours
_MOST_NEAR = 0.03  # in place of `NEAR_ENOUGH` where rough ends explain that a first guess is off
_MOST_FACES = 50_000_000  # of a mesh that fills its lattice: it takes some 6 GB


@dataclass(frozen=True)
class CaseTables:
    """What marching cubes does in each of the 256 cases.

    Attributes:
        counts: (256,) triangles.
        owners: (256, 5, 3, 3) offset of the cell that owns the edge on which each triangle corner lies.
        axes: (256, 5, 3) direction of that edge, which starts at its owner's lowest corner.
        faces_mixed: (256, 6) whether a cell's face has corners on both sides, in the order of the face steps.
    """

    counts: NDArray[np.int64]
    owners: NDArray[np.int32]
    axes: NDArray[np.int32]
    faces_mixed: NDArray[np.bool_]


# The triangles of each case, three edges each, "-" for none: how PyMCubes cuts cells (a test compares them), written
# down because importing it takes half a second. Edge 4 * axis + 2 * p + q lies along that axis at the offsets p and q
# along the other two.
_CASES = """
- 048 185 104514 429 029809 951912841421 951912210 593 580503490930 318938 493430031 542352 580503302 842821123
021123 0a6 648a68 1a6165086856 1a6165564 40a4a962a29a 62969aa98 a51a95a69296084 195a91a29a62 0a6935
8a3835a63934643 896860936a61316 a31a43a64934 23a2a635a0a454a 62363868a835 40862a21a231 61a621231 a17
817874a07047 a857a5 a04a47745 a17294 02707a297178987 5725297a2428a82 a57a25a02295 37a3a915a59a 07a037043934815
37a3a99a8 49304303707a 54a5a142a7a323a 815a07037023 7a8782723428 a37a03023 017607 817874476 085056657 647457
019094179296769 276287298178 084625657529 962956576 769793609591019 815497476793 089097076793 349374764
627723401415 362376158 637623408 637236 6b2 24828b0686b8 6b2851 45b4b251b6b010b 46b94b 06b0b88b9 4614186b1519b91
6b9691610519 926965b36356 6806586b535b249 31636b186269896 49206303136b b35b56654 b356b5658680 84686383136b
b06b30310 ab20a2 24828bb8a ab5a51b25850205 2ab25a24551a 40a4a99ab ab8b98 0841a5a95ab9 1951a9ab9 2052590a535bab5
249b38b8a835 0822891ab1b3 b1ab31924 0540b50ab35b 5b358b8ab 1b31ab084 b1a31b 7b27216a2a12 4b247b48717806a
a82a26852b27572 a067b47454b2 b91b17941a16461 06a81b8b9b17 b57b95a86846 7957b96a0 a26a92a195917b3 06a1582497b3
7b36a2a92a89 06a2497b3 b376a56545a1 6a07b3815 6846a87b3 a067b3 7b2721120 27b472417481 820872857b27 27b247457
7017907b9940 7817b8b98 97b957840 97b579 7b3152120259 492581b37 908920b37 249b37 14015437b 7b3158 0847b3 b37 b73
04873b 53b5b871b18b 10b1b704b3b545b 3943472b4b74 987973807b72027 418471427b72953 53971b12b102 9b7597
9b0904b70805750 71878bb89 71070979b904 2b7274475 802827875b72 2b7427471418 72b712102 b60b03a70730
64363b48373a8a3 63b653605850a71 a71b63653645 0940390a373a62b 62ba79a98973 39562b0841a7 a71b62539 75070a59060b9b0
a78875b64b49 1a70868b689b b49b64a71 b62a70740754 a58a75b62 40862b1a7 62ba71 ba13b1 1341483b404aba4 53b5b88ba
04505b0ba3b5 ba4b42a14943134 19813902a2ba 3952b4b84ba8 2a02ba395 15919aa9b 158a09a9b904 a8bb89 4a049a9ba
2ba2a52545a1 a2ba02815 2842b8ba8 a2b02a b60b03301 8648368133b6 b5365b685608 b53b65645 62b409039013 3813982b6
62b408395 b62395 69b619601591 4b649b581 0b608b89b 4b69b4 41540162b 62b815 08462b 62b 673263 678680738482328
328385268187678 432453670710 394347746 098079067739 953841471467 706710539 926965567 249068658675 267278289187
071067249 674475 058065675 871847467 071670 a73a30032 78a728732482 a71083032385 52453271a 4390340730a7 3a739a98a
0841a7953 1a7539 a75a52a20259 5a758a492 0920891a7 a71249 a40a74754 a5875a a71084 a71 6a1612213 6a0241213148
6326836a8853 25324506a a13a34a46943 839813a06 86a846953 06a953 159a19a92a26 a06815249 6926a9a89 6a0249 16a156546
06a815 684a86 06a 012132 824812132 508530320 524325 439403013 381983 408953 539 915921201 815492 092890 492
140541 158 084 -
"""


@cache
def case_tables() -> CaseTables:
    """The tables of PyMCubes' marching cubes."""
    counts, mixed = np.zeros(256, np.int64), np.zeros((256, 6), np.bool_)
    owners, axes = np.zeros((256, 5, 3, 3), np.int32), np.zeros((256, 5, 3), np.int32)
    for case, word in enumerate(_CASES.split()):
        inside = (case >> np.arange(8) & 1).astype(bool).reshape(2, 2, 2)
        for f, (axis, side) in enumerate((a, s) for a in range(3) for s in range(2)):
            face = inside.take(side, axis)
            mixed[case, f] = face.any() and not face.all()
        for k, digit in enumerate("" if word == "-" else word):
            triangle, corner = divmod(k, 3)
            axis, p, q = int(digit, 16) >> 2, int(digit, 16) >> 1 & 1, int(digit, 16) & 1
            axes[case, triangle, corner] = axis
            owners[case, triangle, corner] = np.insert([p, q], axis, 0)
            counts[case] = triangle + 1
    return CaseTables(counts, owners, axes, mixed)


@dataclass(frozen=True)
class Surface:
    """The cells that a level set crosses, in lattice order.

    Attributes:
        cells: (A, 3) int32 padded index of each cell's lowest corner.
        cases: (A,) uint8.
    """

    cells: NDArray[np.int32]
    cases: NDArray[np.uint8]


def follow_surface(
    samples: SparseSamples, coarse: Scan, *, small_pieces: bool = False, most_cells: int | None = None
) -> Surface:
    """Find every cell that the level set crosses, starting from where a coarse scan changes side.

    Between two neighbouring coarse samples on different sides the fine samples along a path of lattice edges
    are evaluated; each edge with a change of side is a start. From there the surface is followed from cell to cell
    through the faces that it crosses, to its end. A piece of surface is thus found whole as soon as the scan has
    samples on both of its sides, and only corners of crossed cells are evaluated.

    Args:
        samples: the fine lattice; its values and cell numbers are filled in.
        coarse: a `scan` of the same lattice.
        small_pieces: look for pieces, too, that peak between the coarse samples; it costs some more evaluations.
        most_cells: give up when more cells than that are found; what comes back is then a part, of more cells.
    """
    most = 8 * int(np.prod(samples.lattice.shape)) if most_cells is None else most_cells
    found = _follow(samples, _climb(samples, coarse), most) if small_pieces else []
    starts, ends = _changes(coarse, samples.level)
    pairs = _ROUND_PAIRS
    while len(starts) and _count(found) <= most:
        now = np.unique(np.linspace(0, len(starts) - 1, min(len(starts), pairs)).astype(np.int64))
        pairs *= 2
        path = _paths(starts[now], ends[now])
        samples.at(path[..., 0], path[..., 1], path[..., 2])
        found.extend(_follow(samples, _path_cells(samples, path), most - _count(found)))
        rest = np.delete(np.arange(len(starts)), now)
        rest = rest[~_explained(samples, starts[rest], ends[rest])]
        starts, ends = starts[rest], ends[rest]
    return _in_order(found, samples)


def _changes(coarse: Scan, level: float) -> tuple[Ints, Ints]:
    """Padded fine indices (P, 3) of neighbouring coarse samples on different sides of the level."""
    with np.errstate(invalid="ignore"):
        inside = coarse.values > np.float32(level)
    pairs = list(diagonal_pairs(coarse.values, inside))
    ends = (np.concatenate([p[k] for p in pairs]) for k in range(2))
    a, b = (np.stack([coarse.coordinates[i][e[:, i]] for i in range(3)], 1).astype(np.int32) for e in ends)
    return a, b


def _paths(starts: Ints, ends: Ints) -> NDArray[np.int32]:
    """Lattice walks (P, L, 3) from starts to ends, first along x, then y, then z; shorter ones wait at their end."""
    delta = ends - starts
    length = np.abs(delta)
    steps = np.arange(int(length.sum(1).max()) + 1, dtype=np.int32)[None, :]
    before = np.cumsum(length, 1) - length
    walked = [
        np.clip(steps - before[:, k : k + 1], 0, length[:, k : k + 1]) * np.sign(delta[:, k : k + 1]) for k in range(3)
    ]
    return np.stack([starts[:, k : k + 1] + walked[k] for k in range(3)], -1).astype(np.int32)


def _crossings(samples: SparseSamples, path: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.bool_], Ints]:
    """The steps of each walk: owner cells (P, L - 1, 3), whether a step is known to change side, owners' addresses."""
    values = samples.known(samples.addresses(path[..., 0], path[..., 1], path[..., 2]))
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        inside = values > 0
    change = known[:, 1:] & known[:, :-1] & (inside[:, 1:] != inside[:, :-1])
    owners = np.minimum(path[:, 1:], path[:, :-1])
    return owners, change, samples.addresses(owners[..., 0], owners[..., 1], owners[..., 2])


def _path_cells(samples: SparseSamples, path: NDArray[np.int32]) -> NDArray[np.int32]:
    """Cells (S, 3) not visited yet, each once, that own an edge of a walk that is known to change side."""
    owners, change, addresses = _crossings(samples, path)
    return _unvisited(samples, owners[change], addresses[change])


def _explained(samples: SparseSamples, starts: Ints, ends: Ints) -> NDArray[np.bool_]:
    """Whether walks (P) between samples on different sides cross surface that was followed, an odd number of times."""
    explained = np.zeros(len(starts), np.bool_)
    for at in range(0, len(starts), _PASS >> 4):
        part = slice(at, at + (_PASS >> 4))
        _, change, addresses = _crossings(samples, _paths(starts[part], ends[part]))
        explained[part] = (change & (samples.cell_numbers[addresses] >= 0)).sum(1) % 2 == 1
    return explained


def _unvisited(samples: SparseSamples, cells: NDArray[np.int32], addresses: Ints) -> NDArray[np.int32]:
    """The cells that were not visited yet, each once; they count as visited from now on."""
    new = samples.cell_numbers[addresses] < 0
    cells, addresses = cells[new], addresses[new]
    return cells[first_of_each(samples.cell_numbers, addresses)]


def _count(found: list[Surface]) -> int:
    """How many cells there are."""
    return sum(len(s.cases) for s in found)


def _follow(samples: SparseSamples, cells: NDArray[np.int32], most: int) -> list[Surface]:
    """The cells that the level set crosses and that hang together with ``cells``, in the order they are met.

    All of them, unless there are more than ``most``.
    """
    tables = case_tables()
    found: list[Surface] = []
    while len(cells) and _count(found) <= most:
        cases = _cases(samples, cells)
        crossed = (cases > 0) & (cases < 255)
        cells, cases = cells[crossed], cases[crossed]
        found.append(Surface(cells, cases))
        mixed = tables.faces_mixed[cases]
        beyond = np.concatenate([cells[mixed[:, f]] + _FACE_STEPS[f] for f in range(6)])
        cells = _unvisited(samples, beyond, samples.addresses(beyond[:, 0], beyond[:, 1], beyond[:, 2]))
    return found


def _cases(samples: SparseSamples, cells: NDArray[np.int32]) -> NDArray[np.uint8]:
    """The case (F,) of each cell; corners that are missing are evaluated, all in one call."""
    inside = samples.at_corners(cells) > 0
    return np.packbits(inside, axis=1, bitorder="little")[:, 0]


def _in_order(found: list[Surface], samples: SparseSamples) -> Surface:
    """All cells in lattice order, numbered in ``samples.cell_numbers``; the way they were found leaves no trace."""
    if not found:
        return Surface(np.empty((0, 3), np.int32), np.empty(0, np.uint8))
    cells, cases = np.concatenate([s.cells for s in found]), np.concatenate([s.cases for s in found])
    _, ny, nz = (n + 2 for n in samples.lattice.shape)
    order = np.argsort((cells[:, 0].astype(np.int64) * ny + cells[:, 1]) * nz + cells[:, 2])
    cells, cases = cells[order], cases[order]
    samples.cell_numbers[samples.addresses(cells[:, 0], cells[:, 1], cells[:, 2])] = np.arange(len(cells))
    return Surface(cells, cases)


def _climb(samples: SparseSamples, coarse: Scan) -> NDArray[np.int32]:
    """Start cells of small pieces that peak between coarse samples.

    From each coarse sample that is outside, not below any of its eight neighbours, and no further below the level than
    the drop to its lowest neighbour, walk uphill over the fine lattice with halving strides.
    """
    tops = _tops(coarse, samples.level)
    at, stride = tops, int(max(np.diff(c).max() for c in coarse.coordinates)) // 2
    moves = np.array([[x, y, z] for x in (0, -1, 1) for y in (0, -1, 1) for z in (0, -1, 1)], np.int32)
    last = np.asarray(samples.lattice.shape, np.int32)
    while stride and len(at):
        around = np.clip(at[:, None] + moves * stride, 1, last)
        best = samples.at(around[..., 0], around[..., 1], around[..., 2]).argmax(1)
        at, stride = around[np.arange(len(at)), best], stride // 2
    risen = samples.at(at[:, 0], at[:, 1], at[:, 2]) > 0
    if not risen.any():
        return np.empty((0, 3), np.int32)
    path = _paths(tops[risen], at[risen])
    samples.at(path[..., 0], path[..., 1], path[..., 2])
    return _path_cells(samples, path)


def _tops(coarse: Scan, level: float) -> NDArray[np.int32]:
    """Padded fine indices (T, 3) of coarse samples where `_climb` starts."""
    values = np.where(np.isinf(coarse.values), np.nan, coarse.values)
    inner = values[1:-1, 1:-1, 1:-1]
    x, y, z = values.shape
    around = [values[i : x - 2 + i, j : y - 2 + j, k : z - 2 + k] for i in (0, 2) for j in (0, 2) for k in (0, 2)]
    highest, lowest = around[0], around[0]
    for neighbour in around[1:]:
        highest, lowest = np.fmax(highest, neighbour), np.fmin(lowest, neighbour)
    top = (inner <= level) & (inner >= highest) & (level - inner <= inner - lowest)
    index = np.argwhere(top) + 1
    return np.stack([coarse.coordinates[i][index[:, i]] for i in range(3)], 1).astype(np.int32)


@dataclass(frozen=True)
class Crossings:
    """The lattice edges that the level set crosses, one for each vertex, and the triangles between them.

    Attributes:
        lattice: where the edges lie.
        level: raw density of the surface.
        start: (N, 3) int32 padded index of each edge's lower end.
        axis: (N,) int8 direction of each edge.
        values: (N, 2) float32 at the lower and the upper end, minus the level; one is > 0, one is not.
        faces: (F, 3) int32, counter-clockwise seen from outside.
        cells: how many cells of the lattice the level set crosses.
    """

    lattice: Lattice
    level: float
    start: NDArray[np.int32]
    axis: NDArray[np.int8]
    values: Floats
    faces: NDArray[np.int32]
    cells: int

    @property
    def sides_cut(self) -> NDArray[np.bool_]:
        """(2, 3) whether the surface meets the lowest and highest samples along x, y, z and was closed there."""
        open_ends = np.isinf(self.values)
        cut = np.zeros((2, 3), np.bool_)
        for side in range(2):
            cut[side, np.unique(self.axis[open_ends[:, side]])] = True
        return cut

    def bounds(self) -> Floats:
        """(2, 3) float64 lowest and highest corner of the vertices, before they are refined."""
        vertices = place_vertices(self, _never, 0).astype(np.float64)
        return np.stack([vertices.min(0), vertices.max(0)])

    def outer(self, keep_pieces: float) -> tuple[Crossings, int]:
        """The faces that make the object's outside (`lrm.pieces.outer_faces`), and how many pieces were dropped."""
        stays, dropped = outer_faces(place_vertices(self, _never, 0), self.faces, keep_pieces)
        return self.select(stays), dropped

    def select(self, stays: NDArray[np.bool_]) -> Crossings:
        """Only the faces that stay (F,), and only the vertices that they use, in their order."""
        if stays.all():
            return self
        used = np.zeros(len(self.start), np.bool_)
        used[self.faces[stays]] = True
        numbers = np.cumsum(used, dtype=np.int32) - 1
        faces = numbers[self.faces[stays]]
        return replace(self, start=self.start[used], axis=self.axis[used], values=self.values[used], faces=faces)


def _never(positions: Floats) -> Floats:
    """Vertices that are not refined ask nothing."""
    raise AssertionError("no step asks for a density")


def triangulate(samples: SparseSamples, surface: Surface) -> Crossings:
    """Marching cubes over the crossed cells: the triangles of a dense run of PyMCubes, and no vertex twice.

    Every crossed edge is owned by the cell at its lower end, which is itself crossed, so vertices are numbered
    cell by cell and triangles look their vertices up through the owners.
    """
    cells, cases = surface.cells, surface.cases
    owner, axis, numbers = _own_edges(cases)
    start = cells[owner]
    end = start + np.eye(3, dtype=np.int32)[axis]
    values = np.stack([samples.at(p[:, 0], p[:, 1], p[:, 2]) for p in (start, end)], 1)

    def vertices(owners: Ints, axes: Ints) -> NDArray[np.int32]:
        at = samples.cell_numbers[samples.addresses(owners[..., 0], owners[..., 1], owners[..., 2])]
        return numbers[at, axes]

    count = max(len(cases), 1)
    faces = [_faces(cells[a : a + _PASS], cases[a : a + _PASS], vertices) for a in range(0, count, _PASS)]
    return Crossings(samples.lattice, samples.level, start, axis, values, np.concatenate(faces), len(cases))


def march_layers(lattice: Lattice, evaluate: Callable[[Floats], Floats], level: float) -> Crossings:
    """Marching cubes over every cell of a lattice, for a level set that crosses a good part of them.

    The result is that of `follow_surface` and `triangulate`, in the same order, but for pieces that the coarse scan
    of the former misses. Besides the result, a few layers of samples and vertex numbers are held, no more.

    Args:
        lattice: all of its samples are evaluated, once.
        evaluate: world positions (N, 3) → raw density (N,).
        level: raw density of the surface.

    Raises:
        MeshError: more than 50 million faces.
    """
    edges: list[tuple[NDArray[np.int32], NDArray[np.int8], Floats]] = []
    faces: list[NDArray[np.int32]] = []
    cells = made = 0
    for slab, ahead in pairwise(_slabs(lattice, evaluate, level)):
        edges.append((slab.start, slab.axis, slab.values))
        faces.append(_slab_faces(slab, ahead.numbers))
        cells, made = cells + len(slab.cases), made + len(faces[-1])
        if made > _MOST_FACES:
            raise MeshError(
                f"the surface has more than {_MOST_FACES:,} faces on {lattice.shape} samples, of which "
                f"{slab.x} of {lattice.shape[0]} layers were looked at. It is noise rather than an object, or the "
                "threshold is off: check the weights, try another --threshold or a lower --resolution."
            )
    start, axis, values = (np.concatenate(parts) for parts in zip(*edges, strict=True))
    return Crossings(lattice, level, start, axis, values, np.concatenate(faces), cells)


@dataclass(frozen=True)
class _Slab:
    """The cells between two neighbouring layers of samples across x.

    Attributes:
        x: padded index of the lower layer.
        y, z: (A,) padded indices of the crossed cells, in lattice order.
        cases: (A,) uint8 of these cells.
        numbers: (Y + 1, Z + 1, 3) int32 vertex on the edge along x, y, z that a cell owns; where a cell or that edge
            is not crossed, it says nothing.
        start, axis, values: see `Crossings`, of the vertices of this slab.
    """

    x: int
    y: Ints
    z: Ints
    cases: NDArray[np.uint8]
    numbers: NDArray[np.int32]
    start: NDArray[np.int32]
    axis: NDArray[np.int8]
    values: Floats


def _slabs(lattice: Lattice, evaluate: Callable[[Floats], Floats], level: float) -> Iterator[_Slab]:
    """The slabs of a lattice and one more, which is empty, so that each of them has another one ahead."""
    count = 0
    outside = np.full([n + 2 for n in lattice.shape[1:]], OUTSIDE, np.float32)
    for x, (low, high) in enumerate(pairwise(chain(layers(lattice, evaluate, level), [outside]))):
        slab = _slab(x, low, high, count)
        count += len(slab.axis)
        yield slab


def _slab(x: int, low: Floats, high: Floats, count: int) -> _Slab:
    """The slab between two layers (Y + 2, Z + 2) of values; its first vertex has number ``count``."""
    inside = [low > 0, high > 0]
    rows, columns = (n - 1 for n in low.shape)
    cases = np.zeros((rows, columns), np.uint8)
    for bit, (i, j, k) in enumerate(CORNERS):
        cases |= inside[i][j : j + rows, k : k + columns].view(np.uint8) << np.uint8(bit)
    y, z = np.nonzero((cases > 0) & (cases < 255))
    owner, axis, own = _own_edges(cases[y, z])
    numbers = np.empty((rows, columns, 3), np.int32)
    numbers[y, z] = own + count
    a, b = y[owner], z[owner]
    values = np.stack([low[a, b], np.choose(axis, [high[a, b], low[a + 1, b], low[a, b + 1]])], 1)
    start = np.stack([np.full_like(a, x), a, b], 1).astype(np.int32)
    return _Slab(x, y, z, cases[y, z], numbers, start, axis, values)


def _slab_faces(slab: _Slab, ahead: NDArray[np.int32]) -> NDArray[np.int32]:
    """Triangles (F, 3) of a slab's cells, as vertex numbers; ``ahead`` are the numbers of the next slab."""
    numbers = np.stack([slab.numbers, ahead])

    def vertices(owners: Ints, axes: Ints) -> NDArray[np.int32]:
        return np.asarray(numbers[owners[..., 0] - slab.x, owners[..., 1], owners[..., 2], axes])

    cells = np.stack([np.full_like(slab.y, slab.x), slab.y, slab.z], 1).astype(np.int32)
    return _faces(cells, slab.cases, vertices)


def _own_edges(cases: NDArray[np.uint8]) -> tuple[Ints, NDArray[np.int8], NDArray[np.int32]]:
    """The crossed edges at the lowest corners of cells (A,), each a vertex.

    Returns:
        The cell (N,) and direction (N,) of each vertex, and the number (A, 3) of the vertex on the edges along x, y, z
        of each cell, which says nothing where that edge is not crossed.
    """
    inside = np.unpackbits(cases[:, None], axis=1, bitorder="little").view(np.bool_)
    crossed = inside[:, :1] != inside[:, [4, 2, 1]]  # along x, y, z from the lowest corner
    owner, axis = np.nonzero(crossed)
    numbers = np.cumsum(crossed.reshape(-1), dtype=np.int32).reshape(-1, 3) - 1
    return owner, axis.astype(np.int8), numbers


def _faces(
    cells: NDArray[np.int32], cases: NDArray[np.uint8], vertices: Callable[[Ints, Ints], NDArray[np.int32]]
) -> NDArray[np.int32]:
    """Triangles (F, 3) of some cells; ``vertices``: owners (F, 3, 3) of edges, their axes (F, 3) → vertex numbers."""
    tables = case_tables()
    counts = tables.counts[cases]
    cell = np.repeat(np.arange(len(cells)), counts)
    which = np.arange(len(cell)) - np.repeat(np.cumsum(counts) - counts, counts)
    owners = cells[cell][:, None, :] + tables.owners[cases[cell], which]
    return vertices(owners, tables.axes[cases[cell], which])


def place_vertices(crossings: Crossings, evaluate: Callable[[Floats], Floats], steps: int) -> Floats:
    """Put each vertex where the raw density meets the level on its edge; `place_with_colors` without colours.

    Args:
        crossings: from `triangulate` or `march_layers`.
        evaluate: world positions (N, 3) → raw density (N,).
        steps: evaluations per vertex, >= 0.

    Returns:
        (N, 3) float32 world positions.
    """
    return place_with_colors(crossings, lambda positions: evaluate(positions)[:, None], steps)[0]


def place_with_colors(
    crossings: Crossings, evaluate: Callable[[Floats], Floats], steps: int, *, noise: float = 0.0
) -> tuple[Floats, Floats]:
    """Put each vertex where the raw density meets the level on its edge, and keep what else was seen there.

    Linear interpolation first; then regula falsi with the Illinois rule, which keeps the bracket: each step evaluates
    the field once at the vertices that are not within 1 % of their edge's difference, and ends in interpolation again,
    whose error is that times the relative error of the slope. Edges into the padding get their vertex at the
    sample in space, so that a mesh is closed by flat faces there.

    Args:
        crossings: from `triangulate` or `march_layers`; values at the ends of edges may be rough, but not in sign.
        evaluate: world positions (N, 3) → (N, 1 + K): raw density, and K more numbers, colours usually.
        steps: evaluations per vertex, >= 0.
        noise: values at the ends of edges may be off by that, >= 0. A guess from such ends is off by more, for no other
            reason, so that 3 % of an edge's difference will do where ``noise`` is small beside it and the slopes on
            both sides of the guess agree: the last slope is then right to a third, the vertex to 2 % of the edge.

    Returns:
        (N, 3) float32 world positions, and (N, K) float32 what was seen no further than 2 % of an edge away, or 3 %
        with ``noise``; NaN where nothing was.
    """
    placed, seen = np.empty((len(crossings.axis), 3), np.float32), []
    for at in range(0, max(len(placed), 1), _PASS):
        part = slice(at, at + _PASS)
        c = replace(crossings, start=crossings.start[part], axis=crossings.axis[part], values=crossings.values[part])
        t, colors = _parameters(c, evaluate, steps, noise)
        placed[part] = c.lattice.positions(_along(c, t, np.arange(len(c.axis))))
        seen.append(colors)
    return placed, np.concatenate(seen)


def _parameters(
    crossings: Crossings, evaluate: Callable[[Floats], Floats], steps: int, noise: float
) -> tuple[Floats, Floats]:
    """Where each edge (N,) meets the level, 0 at its lower to 1 at its upper end, and the colours seen there."""
    a, b = np.zeros(len(crossings.values)), np.ones(len(crossings.values))
    fa, fb = crossings.values.astype(np.float64).T.copy()
    t = _zero(a, b, fa, fb)
    scale = np.abs(fa - fb)
    todo = np.flatnonzero(np.isfinite(scale))
    at, colors = np.full(len(t), np.nan), np.empty((len(t), 0), np.float32)
    for _ in range(steps):
        found = evaluate(crossings.lattice.positions(_along(crossings, t, todo)))
        f = found[:, 0] - np.float64(np.float32(crossings.level))
        colors = np.full((len(t), found.shape[1] - 1), np.nan, np.float32) if not colors.size else colors
        at[todo], colors[todo] = t[todo], found[:, 1:]
        now, low, high, below, above = (values[todo] for values in (t, a, b, fa, fb))
        off, left = np.abs(f) / scale[todo], (f > 0) == (below > 0)
        # An end that stays where it was for a second time counts half, or the bracket would
        # shrink from one side only.
        a[todo], b[todo] = np.where(left, now, low), np.where(left, high, now)
        fa[todo] = np.where(left, f, np.where(high == 1.0, below, below / 2))
        fb[todo] = np.where(left, np.where(low == 0.0, above, above / 2), f)
        t[todo] = _zero(a[todo], b[todo], fa[todo], fb[todo])
        enough = off <= NEAR_ENOUGH
        if noise:
            straight = _straight((f - below) / (now - low), (above - f) / (high - now))
            enough |= straight & (off <= np.minimum(_MOST_NEAR, scale[todo] * (0.0025 / noise)))
        todo = todo[~enough]
    with np.errstate(invalid="ignore"):
        colors[~(np.abs(t - at) <= (_MOST_NEAR if noise else SAME_PLACE))] = np.nan
    return t, colors


def _straight(before: Floats, after: Floats) -> NDArray[np.bool_]:
    """Whether two slopes (N,) that meet agree within a factor of one and a half."""
    return np.asarray(np.abs(before - after) <= 0.2 * np.abs(before + after))


def _zero(a: Floats, b: Floats, fa: Floats, fb: Floats) -> Floats:
    """Where the line through (a, fa) and (b, fb) is zero; at the finite end when the other is infinite."""
    with np.errstate(invalid="ignore"):
        part = np.where(np.isfinite(fb), np.where(np.isfinite(fa), fa / (fa - fb), 1.0), 0.0)
    # Kept off the ends by a ten-thousandth of a cell, so that no triangle shrinks to nothing on a sample that is
    # exactly at the level.
    inner = np.isfinite(fa) & np.isfinite(fb)
    return a + (b - a) * np.where(inner, np.clip(part, 1e-4, 1 - 1e-4), part)


def _along(crossings: Crossings, t: Floats, which: Ints) -> Floats:
    """Padded positions (M, 3) at parameter t of the edges ``which``."""
    index = crossings.start[which].astype(np.float64)
    index[np.arange(len(which)), crossings.axis[which]] += t[which]
    return index
