"""The page of ``trilift demo``: upload a photo, see the cut-out, lift it, look at the object, download it.

::

    upload ──► cut-out and its warnings ──► Lift ──► viewer, files, a line of numbers

Everything stays on the machine that runs it: no analytics, no fonts or scripts of ours from elsewhere, 127.0.0.1 unless
another host is named, and no public link unless ``--share`` asks for one.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilift import Asset, Cutout, ImageTo3D, TriliftError, cut_out, load_photo

if TYPE_CHECKING:
    import gradio
    import numpy as np

BACKGROUNDS = [
    ("find it", "auto"),
    ("keep the whole picture", "keep"),
    ("remove it, even when there is an alpha", "remove"),
]
EXTRA_FORMATS = ["obj", "ply", "stl"]
STAGES = {
    "load": "reading the photo",
    "cutout": "cutting out the object",
    "network": "reconstructing",
    "mesh": "taking the surface",
    "check": "checking the object",
}
MAX_RESOLUTION = 512
MAX_WAITING = 16
# Results and uploads are looked at every hour and removed when they are an hour old, and all of them on a restart.
CACHE_SECONDS = 3600
MAX_UPLOAD = "64mb"

PipeLoader = Callable[[], ImageTo3D]


class Workbench:
    """What the page's buttons do.

    Args:
        pipe_loader: gives the pipeline; called once, when the first photo is lifted.
        keep_file: takes a file into the page's own store and gives its path there; what it was given may go.
    """

    def __init__(self, pipe_loader: PipeLoader, keep_file: Callable[[Path], str]) -> None:
        self._pipe_loader = pipe_loader
        self._keep_file = keep_file
        self._pipe: ImageTo3D | None = None
        self._lock = threading.Lock()

    def preview(self, photo: str | None, background: str) -> tuple[np.ndarray | None, str]:
        """Cut the object out of an upload.

        Args:
            photo: path of the upload; None when it was taken away.
            background: ``auto``, ``keep`` or ``remove``.

        Returns:
            The cut-out as (S, S, 4) uint8 straight-alpha RGBA and what there is to say about it.
        """
        if not photo:
            return None, ""
        with friendly(photo):
            cutout = cut_out(load_photo(photo), background=background)  # type: ignore[arg-type]
        return cutout.image, describe_cutout(cutout)

    def lift(
        self,
        photo: str | None,
        resolution: int = 256,
        background: str = "auto",
        elevation: float | None = None,
        seed: int = 0,
        formats: Sequence[str] = (),
        on_stage: Callable[[str], None] | None = None,
    ) -> tuple[str, np.ndarray, str, list[str]]:
        """Lift an upload.

        Args:
            photo: path of the upload.
            resolution: samples per axis of the mesh's lattice.
            background: as for `preview`.
            elevation: of the photograph's camera in degrees; None lets the model estimate it.
            seed: of all random numbers.
            formats: file formats beside GLB.
            on_stage: called with the name of each stage when it begins.

        Returns:
            Path of the GLB, the cut-out (S, S, 4) uint8, a few lines of text, and the paths of all files.
        """
        if not photo:
            raise page_error("Choose a photo first (PNG or JPEG).")
        with friendly(photo):
            asset = self._load_pipe()(
                photo, on_stage=on_stage, resolution=int(resolution), background=background, elevation=elevation,
                seed=int(seed),
            )  # fmt: skip
            files = self._save(asset, ("glb", *(name for name in formats if name != "glb")))
        mesh = next(path for path in files if path.endswith(".glb"))
        return mesh, asset.cutout.image, describe_asset(asset), files

    def _load_pipe(self) -> ImageTo3D:
        with self._lock:
            if self._pipe is None:
                self._pipe = self._pipe_loader()
            return self._pipe

    def _save(self, asset: Asset, formats: tuple[str, ...]) -> list[str]:
        with tempfile.TemporaryDirectory(prefix="trilift-demo-") as folder:
            return [self._keep_file(path) for path in asset.save(Path(folder) / asset.name, formats=formats)]


@contextmanager
def friendly(photo: str) -> Iterator[None]:
    """Show our own errors as they are, but with the upload's name in place of where the server keeps it."""
    try:
        yield
    except TriliftError as error:
        raise page_error(str(error).replace(photo, Path(photo).name)) from error


def page_error(text: str) -> Exception:
    """An error that the page shows to its user and does not print as a crash."""
    import gradio as gr

    return gr.Error(text, title="Not lifted", duration=None, print_exception=False)


def describe_cutout(cutout: Cutout) -> str:
    """How the cut-out was made, and a line for each of its warnings."""
    how = {
        "alpha": "The picture's own transparency.",
        "mask": "The mask beside the picture.",
        "rembg": "Background removed by the learned remover.",
        "classical": "Background removed by colours alone.",
        "keep": "The whole picture.",
    }
    return "\n".join([how[cutout.method], *cutout.warnings])


def describe_asset(asset: Asset) -> str:
    """Size of the mesh, the seconds that it took, and a line for each warning."""
    seconds = asset.record["seconds"]["lift"]
    size = f"{len(asset.mesh.vertices)} vertices, {len(asset.mesh.faces)} triangles, {seconds:.1f} s"
    return "\n".join([size, *asset.record["warnings"]])


def build_app(pipe_loader: PipeLoader) -> gradio.Blocks:
    """Lay out the page.

    Args:
        pipe_loader: gives the pipeline; called once, when the first photo is lifted.

    Returns:
        The page, not yet listening; ``launch`` it with `launch_options`. Its one public endpoint is ``/lift``.
    """
    # Read by gradio when it is imported.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    page = gr.Blocks(title="trilift", analytics_enabled=False, delete_cache=(CACHE_SECONDS, CACHE_SECONDS))
    with page:
        gr.Markdown("# trilift\nOne photo in, one upright, coloured 3D object out.")
        with gr.Row():
            with gr.Column():
                photo = gr.File(label="Photo", file_types=["image"], height=140)
                cutout = gr.Image(label="Cut-out", format="png", image_mode="RGBA", interactive=False, height=320)
                about = gr.Textbox(label="About", lines=3, interactive=False)
                settings = _settings(gr)
                button = gr.Button("Lift", variant="primary")
            with gr.Column():
                viewer = gr.Model3D(label="Object", height=520, clear_color=(0.94, 0.94, 0.94, 1.0))
                files = gr.File(label="Files", file_count="multiple", interactive=False)
        bench = Workbench(pipe_loader, lambda path: str(files.move_resource_to_block_cache(path)))

        def lift(
            photo: str | None,
            resolution: int = 256,
            background: str = "auto",
            elevation: float | None = None,
            seed: int = 0,
            formats: Sequence[str] = (),
            progress: gr.Progress = gr.Progress(),  # noqa: B008 - how gradio hands it in
        ) -> tuple[Any, ...]:
            def show(stage: str) -> None:
                steps = list(STAGES)
                progress((steps.index(stage) if stage in STAGES else len(steps), len(steps)), STAGES.get(stage, stage))

            return bench.lift(photo, resolution, background, elevation, seed, formats, show)

        background = settings[1]
        gr.on(
            [photo.change, background.change], bench.preview, [photo, background], [cutout, about],
            api_visibility="private", concurrency_limit=1,
        )  # fmt: skip
        button.click(lift, [photo, *settings], [viewer, cutout, about, files], api_name="lift", concurrency_limit=1)
    page.queue(max_size=MAX_WAITING)
    return page


def _settings(gr: Any) -> list[Any]:
    """The folded-away settings, in the order of `Workbench.lift`'s arguments."""
    with gr.Accordion("Settings", open=False):
        return [
            gr.Slider(64, MAX_RESOLUTION, 256, step=32, precision=0, label="Resolution (samples per axis)"),
            gr.Radio(BACKGROUNDS, value="auto", label="Background"),
            gr.Number(None, label="Camera's elevation in degrees", placeholder="estimated", minimum=-90, maximum=90),
            gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**53),
            gr.CheckboxGroup(EXTRA_FORMATS, value=[], label="Formats beside GLB"),
        ]


def launch_options(host: str = "127.0.0.1", port: int = 0, share: bool = False) -> dict[str, Any]:
    """Arguments for ``launch``: where to listen, and nothing from or for elsewhere.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        share: also make a public link through gradio's servers.
    """
    import gradio as gr

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {
        "server_name": host,
        "server_port": port or _free_port(host),
        "share": share,
        "allowed_paths": [],
        "max_file_size": MAX_UPLOAD,
        "show_error": False,
        "footer_links": ["api"],
        "run_history": False,
        "ssr_mode": False,
        "mcp_server": False,
        "theme": gr.themes.Base(**fonts),
    }


def _free_port(host: str) -> int:
    """A port that nobody listens on just now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def main(argv: Sequence[str] | None = None) -> int:
    """Show the page until it is interrupted; returns the exit status.

    Raises:
        TriliftError: the weights cannot be loaded, or the address cannot be listened on.
    """
    parser = argparse.ArgumentParser(prog="trilift demo", description="A small page in the browser.")
    parser.add_argument("--host", default="127.0.0.1", help="listen here (default %(default)s: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port, 0 for any free one (default %(default)s)")
    parser.add_argument("--share", action="store_true", help="also make a public link through gradio's servers")
    parser.add_argument("--model", default="tiny", help="a name of trilift models, or a folder (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default %(default)s)")
    args = parser.parse_args(argv)
    # Before the page is up, so that missing weights are said here and not to the first visitor.
    pipe = ImageTo3D.from_pretrained(args.model, device=args.device)
    try:
        build_app(lambda: pipe).launch(**launch_options(args.host, args.port, args.share))
    except OSError as error:
        raise TriliftError(f"{args.host}:{args.port} cannot be listened on ({error}). Try --port 0.") from error
    return 0
