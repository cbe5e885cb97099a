"""A GLB in a browser: three.js in headless Chromium, compared pixel by pixel with our own renderer.

three.js is not part of this repository. It is looked for in the folder that ``TRILIFT_THREE`` names and in an ignored
``build/three`` beside the tests, each as ``npm pack three`` unpacks it (``build/three.module.js`` in it):

    npm pack three@0.170.0 && mkdir -p build/three && tar xzf three-0.170.0.tgz -C build/three --strip-components 1
"""

from __future__ import annotations

import base64
import functools
import http.server
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from lrm.mesh import Mesh
from lrm.meshfile import file_matrix, write_mesh
from lrm.raster import render_mesh
from multiview.cameras import gltf_from_world, orbit
from tests import chromium

SIZE = 160
_PLACES = (os.environ.get("TRILIFT_THREE"), Path(__file__).resolve().parents[2] / "build" / "three")
THREE = next((Path(p) for p in _PLACES if p and (Path(p) / "build" / "three.module.js").is_file()), None)
SOFTWARE = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")

pytestmark = [
    pytest.mark.skipif(THREE is None, reason="three.js is not here: see the head of this file"),
    pytest.mark.skipif(chromium.find_chromium() is None, reason="Chromium is not installed"),
]

# Light from everywhere, of the strength at which a rough surface shows its own colour: nothing but colours is compared.
PAGE = """<!doctype html><script type="importmap">{"imports": {"three": "/three/build/three.module.js"}}</script>
<script type="module">
import * as THREE from 'three';
import { GLTFLoader } from '/three/examples/jsm/loaders/GLTFLoader.js';
window.draw = async (file, x, y, z, fov, size) => {
  const renderer = new THREE.WebGLRenderer({antialias: true, preserveDrawingBuffer: true});
  renderer.setSize(size, size);
  const scene = new THREE.Scene();
  scene.background = new THREE.Color('white');
  scene.add(new THREE.AmbientLight(0xffffff, Math.PI));
  scene.add((await new GLTFLoader().loadAsync(file)).scene);
  const camera = new THREE.PerspectiveCamera(fov, 1, 0.01, 100);
  camera.position.set(x, y, z);
  camera.lookAt(0, 0, 0);
  renderer.render(scene, camera);
  return renderer.domElement.toDataURL('image/png');
};
window.ready = true;
</script>"""


def marked_box(textured: bool) -> Mesh:
    """A box 0.6 deep, 0.8 wide and 1 high: mid-grey before, green behind, blue on +y, black on -y, red on top."""
    box = trimesh.creation.box((0.6, 0.8, 1.0))
    sides = np.rint(box.face_normals).astype(int)
    colors = np.zeros((12, 3))
    for normal, color in (((1, 0, 0), (0.5, 0.5, 0.5)), ((-1, 0, 0), (0, 1, 0)), ((0, 1, 0), (0, 0, 1)),
                          ((0, 0, 1), (1, 0, 0)), ((0, 0, -1), (1, 1, 0))):  # fmt: skip
        colors[(sides == normal).all(1)] = color
    corners, faces = box.triangles.reshape(-1, 3), np.arange(36).reshape(-1, 3)
    if not textured:
        return Mesh(corners, faces, colors.repeat(3, 0))
    # A texture of twelve fields in a row, and each face in the middle of its own: vertex colours are left wrong.
    picture = np.rint(colors * 255).astype(np.uint8).repeat(8, 0)[None].repeat(8, 0)
    uvs = np.stack([(np.arange(12) + 0.5).repeat(3) / 12, np.full(36, 0.5)], -1)
    return Mesh(corners, faces, np.full((36, 3), 0.2), uvs=uvs, texture=picture)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...

    def translate_path(self, path: str) -> str:
        """Serve three.js under /three, the test's folder otherwise."""
        assert THREE is not None
        return str(THREE / path.removeprefix("/three/")) if path.startswith("/three/") else super().translate_path(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which this machine alone can see it."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "index.html").write_text(PAGE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(place: tuple[Path, str]) -> Iterator[chromium.Browser]:
    program = chromium.find_chromium()
    assert program is not None
    usual = chromium._FLAGS
    chromium._FLAGS = (*(flag for flag in usual[:-1] if flag != "--disable-gpu"), *SOFTWARE, usual[-1])
    try:
        made = chromium.Browser(program)
    finally:
        chromium._FLAGS = usual
    made._loaded = False
    made._call("Page.navigate", url=place[1])
    made._wait_loaded()
    made.run("new Promise(done => { const look = () => window.ready ? done(1) : setTimeout(look, 50); look(); })")
    yield made
    made.close()


@pytest.mark.parametrize("textured", [False, True], ids=["vertex-colours", "texture"])
@pytest.mark.parametrize("azimuth", [0, 120, 250])
def test_three_js_shows_what_we_show(
    place: tuple[Path, str], browser: chromium.Browser, textured: bool, azimuth: int
) -> None:
    mesh, camera = marked_box(textured), orbit(azimuth, 25.0, 2.6, 40.0)
    write_mesh(mesh, place[0] / "a.glb", matrix=file_matrix(mesh, scale=1.0))
    x, y, z = gltf_from_world(camera.c2w[0, :3, 3].double()).tolist()
    answer = browser.run(f"draw('/a.glb?{azimuth}{textured}', {x}, {y}, {z}, 40, {SIZE})")
    with Image.open(io.BytesIO(base64.b64decode(answer.partition(",")[2]))) as picture:
        seen = np.asarray(picture.convert("RGB"), np.float64) / 255
    flat = mesh if not textured else marked_box(False)  # our renderer draws vertex colours
    ours = render_mesh(flat, camera, SIZE, shading=False).composite(1.0)[0].permute(1, 2, 0).double().numpy()
    assert np.abs(seen - ours).mean() < 0.01, "the same sides, the right way up, at the same place"
    inside = np.abs(seen - ours).max(-1) > 0.03
    assert inside.mean() < 0.03, "colours agree everywhere but along edges"
    if azimuth == 0:
        assert np.rint(seen[SIZE // 2, SIZE // 2] * 255) == pytest.approx([128] * 3, abs=2), "mid-grey, to the front"
    mirrored = ours[:, ::-1]
    assert azimuth == 0 or np.abs(seen - mirrored).mean() > 0.02, "the comparison tells left from right"
