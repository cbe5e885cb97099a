"""The page itself: what stands where, and what happens when it is touched.

::

    photo ──► cut-out, its warnings, a brush and a box ──► Lift ──► progress, views ──► object, files, command line

Gradio reads the handlers' type hints in this file, so that its name has to be one of the file's own; `load_gradio` sees
to that when a page is made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilift import TriliftError, cut_out, load_photo, models

from . import words
from .bench import Bench
from .cutting import ADD_COLOR, REMOVE_COLOR, Box, correct, describe_cutout, for_editor, mask_path, read_layers
from .intake import MAX_PIXELS, MAX_UPLOAD_BYTES, MAX_ZIP_PHOTOS, RefusedError, Upload, own_upload
from .jobs import Done, Pace, Stopped
from .recipe import (
    BACKGROUND_WORDS,
    MAX_BEST_OF,
    MAX_RESOLUTION,
    MAX_STEPS,
    NO_VIEWS,
    SIDES,
    Choices,
    formats_here,
    textures,
)
from .sessions import Result, Session, Sessions
from .work import Lifting

if TYPE_CHECKING:
    import gradio as gr

log = logging.getLogger("trilift.demo")

WORK, LOOK = "work", "look"  # two queues: lifts come one after another, cut-outs are shown beside them
LOOKS_AT_ONCE = 2
# Where the visitor stands, in degrees around and down from straight above, and how far away; the object is 1 large.
CAMERA = (90.0, 75.0, 1.9)
MOST_LAYERS = 4
_MOST_STROKES = 16
_LOST = "Something went wrong here. The server's log has the details; your photo is not to blame."


def load_gradio() -> None:
    """Import gradio under the name by which this file knows it; it takes seconds, which ``--help`` need not wait."""
    global gr
    import gradio as gr


class Page:
    """The page's parts and handlers.

    Args:
        bench: the models.
        sessions: the visitors.
        store: gradio's folder of uploads, below which the sessions' folders lie, too.
        examples: pictures to begin with.
        served: whether visitors come from other machines.
    """

    def __init__(
        self, bench: Bench, sessions: Sessions, store: Path, examples: list[Path], served: bool = False
    ) -> None:
        load_gradio()
        self.served = served
        self.bench, self.sessions, self.store, self.examples = bench, sessions, store, examples
        self.lifting = Lifting(bench, Pace())
        self.settings: dict[str, Any] = {}
        self.sides: dict[str, Any] = {}
        self.box: dict[str, Any] = {}

    # What stands where.

    def lay_out(self) -> None:
        """Make all parts; to be called inside a ``gr.Blocks``."""
        with gr.Column(elem_id="tl-head"):
            promise = "" if self.served else " Nothing leaves this machine."
            gr.Markdown(f"# trilift\n\nOne photo in, one upright, coloured 3D object out.{promise}")
        with gr.Row(elem_id="tl-columns"):
            with gr.Column(scale=5, min_width=320):
                self._photo_column()
            with gr.Column(scale=6, min_width=320):
                self._object_column()
        with gr.Accordion("Many photos: a folder as a zip file", open=False):
            self._folder_part()
        self._connect()
        self._offer_api()

    def _photo_column(self) -> None:
        self.photo = gr.Image(
            label="Photo", type="filepath", sources=["upload", "webcam", "clipboard"], height=300, elem_id="tl-photo",
            buttons=[], placeholder="Drop a photo of one object here, or click to choose one",
        )  # fmt: skip
        self._own(self.photo)
        if self.examples:
            gr.Examples(
                [[str(path)] for path in self.examples], [self.photo], label="Or try one of these", cache_examples=False
            )
        with gr.Row():
            self.button = gr.Button("Lift to 3D", variant="primary", elem_id="tl-lift", scale=3)
            self.cancel = gr.Button("Cancel", variant="stop", elem_id="tl-cancel", scale=1, interactive=False)
        self.status = gr.HTML(words.said_html("Choose a photo, then press Lift to 3D."), elem_id="tl-state")
        with gr.Accordion("Cut-out: what the model will see", open=True, visible=False) as self.cut_part:
            self.cutout = gr.Image(
                label="Cut-out", format="png", image_mode="RGBA", interactive=False, height=220, buttons=["download"],
                elem_id="tl-cutout",
            )  # fmt: skip
            self.about = gr.Textbox(label="About the cut-out", lines=2, interactive=False, elem_id="tl-about")
            self._correction_part()
        self._settings_part()
        self._sides_part()

    def _correction_part(self) -> None:
        with gr.Accordion("Correct the cut-out", open=False) as self.correction:
            gr.Markdown(
                "Paint **green** what belongs to the object and **red** what does not, or narrow the box below; "
                "then press *Cut out again*."
            )
            self.editor = gr.ImageEditor(
                label="Paint on the photo", type="filepath", sources=[], transforms=[], layers=False, height=380,
                brush=gr.Brush(colors=[ADD_COLOR, REMOVE_COLOR], color_mode="fixed", default_size=24), buttons=[],
                eraser=gr.Eraser(default_size=24), elem_id="tl-editor",
            )  # fmt: skip
            self.editor.preprocess = self._painted
            self.editor.blob_storage = Strokes()
            self.editor.accept_blobs = limited_strokes(self.editor.accept_blobs)
            self._keep_home(self.editor)
            for pair in ((("left", 0), ("right", 100)), (("top", 0), ("bottom", 100))):
                with gr.Row():
                    for name, value in pair:
                        self.box[name] = gr.Slider(0, 100, value, step=1, label=f"Box: {name} edge in percent")
            with gr.Row():
                self.recut = gr.Button("Cut out again")
                self.reset = gr.Button("Reset")

    def _settings_part(self) -> None:
        first, views = self.bench.reconstruction_names(), self.bench.generator_names()
        with gr.Accordion("Settings", open=False):
            make = self.settings
            make["model"] = gr.Dropdown(first, value=first[0], label="Model")
            make["views"] = gr.Dropdown(
                [("none: the photo alone", NO_VIEWS), *((name, name) for name in views)], value=NO_VIEWS,
                label="View generator", info="draws the other sides first, for models that take views",
            )  # fmt: skip
            for name in ("model", "views"):
                make[name].preprocess = str  # runs come and go; `Bench.source` knows what there is
            with gr.Row():
                make["view_steps"] = gr.Number(
                    0, label="Steps of the generator (0: its own number)", precision=0, minimum=0, maximum=MAX_STEPS
                )
                make["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**53)
            make["resolution"] = gr.Slider(
                64, MAX_RESOLUTION, 256, step=32, precision=0, label="Resolution (samples per axis)"
            )
            make["background"] = gr.Radio(
                [(text, name) for name, text in BACKGROUND_WORDS.items()], value="auto", label="Background"
            )
            # Text, since an empty number field arrives as 0, which is an elevation like any other.
            make["elevation"] = gr.Textbox(
                "", label="Camera's elevation in degrees (empty: estimated)", placeholder="estimated", max_lines=1
            )
            make["texture"] = gr.Radio(textures(), value="vertex", label="Texture")
            with gr.Row():
                make["faces"] = gr.Number(
                    0, label="Triangles at most (0: no limit)", precision=0, minimum=0, maximum=10_000_000
                )
                make["best_of"] = gr.Slider(1, MAX_BEST_OF, 1, step=1, precision=0, label="Best of so many lifts")
            make["formats"] = gr.CheckboxGroup(
                formats_here()[1:], value=[], label="Files beside GLB", elem_id="tl-formats"
            )
            make["turntable"] = gr.Checkbox(False, label="Turntable (an animation of a full turn; takes longer)")

    def _sides_part(self) -> None:
        with gr.Accordion("More photos of the same object", open=False):
            gr.Markdown("The photo above is the front. Each of these is optional, for models that take views.")
            with gr.Row():
                for side in SIDES:
                    self.sides[side] = gr.Image(
                        label=f"Photo of the {side}", type="filepath", sources=["upload", "clipboard"], height=150,
                        buttons=[], elem_id=f"tl-{side}",
                    )  # fmt: skip
                    self._own(self.sides[side])

    def _object_column(self) -> None:
        self.viewer = gr.Model3D(
            label="Object (drag to turn it)", height=460, camera_position=CAMERA,
            clear_color=(0.93, 0.94, 0.96, 1.0), interactive=False, elem_id="tl-viewer",
        )  # fmt: skip
        self.turn = gr.Button("Show it turning", visible=False, elem_id="tl-turn")
        self.turntable = gr.Image(
            label="Turntable", interactive=False, height=260, visible=False, buttons=["download"],
            elem_id="tl-turntable",
        )  # fmt: skip
        self.gallery = gr.Gallery(
            label="Generated views", columns=3, height="auto", visible=False, interactive=False, elem_id="tl-views"
        )
        self.scores = gr.HTML(elem_id="tl-scores")
        self.files = gr.File(
            label="Downloads", file_count="multiple", interactive=False, visible=False, elem_id="tl-files"
        )
        self.command = gr.Textbox(
            label="The same lift on the command line", lines=1, max_lines=4, interactive=False, buttons=["copy"],
            visible=False, elem_id="tl-command",
        )  # fmt: skip
        self.history = gr.Gallery(
            label="This visit: choose one to see it again", columns=6, height=140, visible=False, interactive=False,
            allow_preview=False, elem_id="tl-history",
        )  # fmt: skip

    def _folder_part(self) -> None:
        gr.Markdown(
            f"A zip file of photos (at most {MAX_ZIP_PHOTOS}) is lifted with the settings above; what comes back is a "
            "zip file with every object and a report."
        )
        with gr.Row():
            self.archive = gr.File(label="Zip file of photos", file_types=[".zip"], height=120, elem_id="tl-archive")
            self._own(self.archive, "photos.zip")
            with gr.Column():
                self.folder_button = gr.Button("Lift all of them", elem_id="tl-lift-all")
                self.folder_status = gr.HTML(elem_id="tl-folder-state")
        self.folder_file = gr.File(label="Results", interactive=False, visible=False, elem_id="tl-folder-file")

    # What happens.

    def _connect(self) -> None:
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        looking = {**quiet, "concurrency_id": LOOK, "concurrency_limit": LOOKS_AT_ONCE, "trigger_mode": "always_last"}
        working = {**quiet, "concurrency_id": WORK, "concurrency_limit": 1, "show_progress": "minimal"}
        background = self.settings["background"]
        shown = [self.cut_part, self.cutout, self.about, *self.box.values()]
        gr.on([self.photo.change, background.change], self.look, [self.photo, background], shown, **looking)
        self.correction.expand(self.open_editor, [self.photo], [self.editor], **looking)
        boxes = [self.box[name] for name in ("left", "top", "right", "bottom")]
        self.recut.click(
            self.cut_again, [self.photo, background, self.editor, *boxes], [self.cutout, self.about], **looking
        )
        self.reset.click(self.start_anew, [self.photo, background], [*shown, self.editor], **looking)
        wanted = {self.photo, *self.sides.values(), *self.settings.values()}
        made = [
            self.status, self.viewer, self.scores, self.files, self.turntable, self.gallery, self.command, self.history,
            self.button, self.cancel, self.cutout, self.turn,
        ]  # fmt: skip
        lifted = self.button.click(self.lift_photo, wanted, made, show_progress_on=[self.status], **working)
        # The last values of a generator come twice, and a viewer that gets its model twice at once draws none.
        lifted.then(self.newest, None, self.viewer, queue=False, **quiet)
        self.turn.click(
            self.show_turning, None, [self.status, self.turntable, self.files, self.turn, self.cancel],
            show_progress_on=[self.status], **working,
        )  # fmt: skip
        self.cancel.click(self.stop, None, None, queue=False, **quiet)
        self.history.select(self.look_back, None, made, **looking)
        self.folder_button.click(
            self.lift_folder, {self.archive, *self.settings.values()},
            [self.folder_status, self.folder_file, self.cancel], show_progress_on=[self.folder_status], **working,
        )  # fmt: skip

    def look(self, photo: Upload | None, background: str, request: gr.Request) -> tuple[Any, ...]:
        """Cut the object out of a new photo; gives its place, the cut-out, what there is to say of it, and the box."""
        whole = (0, 100, 0, 100)  # in the order of the sliders
        if photo is None:
            return (gr.update(visible=False), None, "", *whole)
        with self._saying() as said:
            session = self.sessions.of(request.session_hash)
            kept = session.photo(photo)
            cutout = cut_out(load_photo(kept, max_pixels=MAX_PIXELS), background=background)  # type: ignore[arg-type]
            return (gr.update(visible=True), cutout.image, describe_cutout(cutout), *whole)
        return (gr.update(visible=True), None, said.text, *whole)

    def open_editor(self, photo: Upload | None, request: gr.Request) -> Any:
        """The photo, ready to be painted on."""
        if photo is None:
            return None
        with self._saying():
            image = for_editor(self.sessions.of(request.session_hash).photo(photo))
            return {"background": image, "layers": [], "composite": None}
        return None

    def cut_again(
        self, photo: Upload | None, background: str, layers: list[Path | BytesIO] | None,
        left: float, top: float, right: float, bottom: float, request: gr.Request,
    ) -> tuple[Any, str]:  # fmt: skip
        """Cut the object out with what was painted and inside of the box."""
        if photo is None:
            return None, "Choose a photo first."
        with self._saying() as said:
            kept = self.sessions.of(request.session_hash).photo(photo)
            cutout = correct(kept, background, Box(left, top, right, bottom), read_layers(layers or ()))
            return cutout.image, describe_cutout(cutout)
        return None, said.text

    def start_anew(self, photo: Upload | None, background: str, request: gr.Request) -> tuple[Any, ...]:
        """Forget the corrections."""
        with self._saying():
            if photo is not None:
                mask_path(self.sessions.of(request.session_hash).photo(photo)).unlink(missing_ok=True)
        return (*self.look(photo, background, request), self.open_editor(photo, request))

    def lift_photo(self, values: Mapping[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Lift the photo, telling how far it is."""
        if values[self.photo] is None:
            yield {self.status: words.said_html("Choose a photo first (PNG or JPEG).", "bad")}
            return
        yield {
            self.button: gr.update(interactive=False), self.cancel: gr.update(interactive=True),
            self.gallery: gr.update(value=None, visible=False), self.status: words.said_html("Getting ready ..."),
            self.turn: gr.update(visible=False), self.turntable: gr.update(value=None, visible=False),
        }  # fmt: skip
        idle = {self.button: gr.update(interactive=True), self.cancel: gr.update(interactive=False)}
        with self._saying() as said:
            session = self.sessions.of(request.session_hash)
            sides = {side: values[part] for side, part in self.sides.items()}
            for now in self.lifting.lift(session, values[self.photo], sides, self._choices(values)):
                if isinstance(now, Done):
                    shown = self._shown(now.value)
                    del shown[self.viewer]  # `newest` brings it
                    yield {**shown, **self._told(session), **idle}
                    return
                changes: dict[Any, Any] = {self.status: words.progress_html(now)}
                for views in now.news:
                    changes[self.gallery] = gr.update(value=[str(path) for path in views], visible=True)
                yield changes
        yield {self.status: words.said_html(said.text, said.kind), **idle}

    def _choices(self, values: Mapping[Any, Any]) -> Choices:
        return Choices.of({name: values[part] for name, part in self.settings.items()})

    def _shown(self, result: Result) -> dict[Any, Any]:
        """A result in all the places that belong to it."""
        views = [str(path) for path in result.views]
        turn = None if result.turntable is None else str(result.turntable)
        return {
            self.status: words.said_html("Done. Turn it with the mouse or a finger.", "good"),
            self.viewer: str(result.files[0]),
            self.scores: result.scores,
            self.files: gr.update(value=[str(path) for path in result.files], visible=True),
            self.turntable: gr.update(value=turn, visible=turn is not None),
            self.turn: gr.update(visible=turn is None),
            self.gallery: gr.update(value=views, visible=bool(views)),
            self.command: gr.update(value=result.command, visible=True),
            self.cutout: str(result.picture),
        }

    def _told(self, session: Session) -> dict[Any, Any]:
        """The history."""
        rows = [(str(result.picture), result.title) for result in session.results]
        return {self.history: gr.update(value=rows, visible=len(rows) > 1)}

    def look_back(self, chosen: gr.SelectData, request: gr.Request) -> dict[Any, Any]:
        """Show a result of the history again."""
        session = self.sessions.find(request.session_hash)
        index = chosen.index if isinstance(chosen.index, int) else -1
        if session is None or not 0 <= index < len(session.results):
            return {self.status: words.said_html("This result is not kept any more.", "bad")}
        session.shown = session.results[index]
        return self._shown(session.shown)

    def show_turning(self, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Draw the turntable of the object that is shown, and show it in its place."""
        idle = {self.turn: gr.update(interactive=True), self.cancel: gr.update(interactive=False)}
        yield {self.turn: gr.update(interactive=False), self.cancel: gr.update(interactive=True)}
        with self._saying() as said:
            session = self.sessions.of(request.session_hash)
            for now in self.lifting.turn(session):
                if isinstance(now, Done):
                    result = session.shown
                    if result is None or result is not now.value:  # the visitor looks at another one by now
                        yield {self.status: words.said_html("The other object's turntable is drawn."), **idle}
                        return
                    shown = self._shown(result)
                    kept = {part: shown[part] for part in (self.status, self.turntable, self.files)}
                    yield {**kept, **idle, self.turn: gr.update(visible=False, interactive=True)}
                    return
                yield {self.status: words.progress_html(now)}
        yield {self.status: words.said_html(said.text, said.kind), **idle}

    def newest(self, request: gr.Request) -> Any:
        """The object that has just been lifted, once."""
        session = self.sessions.find(request.session_hash)
        result = None if session is None else session.take_newest()
        return gr.skip() if result is None else str(result.files[0])

    def stop(self, request: gr.Request) -> None:
        """Stop what this visitor's session is doing."""
        session = self.sessions.find(request.session_hash)
        if session is not None:
            session.stop()

    def leave(self, request: gr.Request) -> None:
        """The visitor has closed or reloaded the page."""
        self.sessions.drop(request.session_hash)

    def lift_folder(self, values: Mapping[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Lift the photos of a zip file."""
        if values[self.archive] is None:
            yield {self.folder_status: words.said_html("Choose a zip file of photos first.", "bad")}
            return
        idle = {self.cancel: gr.update(interactive=False)}
        yield {self.cancel: gr.update(interactive=True), self.folder_file: gr.update(value=None, visible=False)}
        rows: list[Any] = []
        with self._saying() as said:
            session = self.sessions.of(request.session_hash)
            for now in self.lifting.folder(session, values[self.archive], self._choices(values)):
                if isinstance(now, Done):
                    done = gr.update(value=str(now.value), visible=True)
                    said_so = words.said_html(f"{len(rows)} photos worked on.", "good") + words.results_html(rows)
                    yield {self.folder_status: said_so, self.folder_file: done, **idle}
                    return
                rows += now.news
                yield {self.folder_status: words.progress_html(now) + words.results_html(rows)}
        yield {self.folder_status: words.said_html(said.text, said.kind) + words.results_html(rows), **idle}

    # The API.

    def _offer_api(self) -> None:
        """``/lift``, ``/views`` and ``/models``; nothing of this is seen on the page."""
        working = {"concurrency_id": WORK, "concurrency_limit": 1}
        with gr.Column(visible=False):
            mesh, files = gr.File(label="mesh"), gr.File(label="files", file_count="multiple")
            pictures, info = gr.File(label="files", file_count="multiple"), gr.JSON(label="info")
            known = gr.JSON(label="models")
            lift, views, listing = gr.Button("lift"), gr.Button("views"), gr.Button("models")
        inputs = [self.photo, *self.sides.values(), *(self.settings[each.name] for each in fields(Choices))]
        lift.click(self.lift_api, inputs, [mesh, files, info], api_name="lift", **working)
        asked = ("views", "view_steps", "seed", "background", "elevation")
        views.click(
            self.views_api, [self.photo, *(self.settings[name] for name in asked)], [pictures, info], api_name="views",
            **working,
        )  # fmt: skip
        listing.click(self.models_api, None, known, api_name="models", concurrency_id=LOOK)

    def lift_api(
        self, photo: Any, back: Any = None, left: Any = None, right: Any = None, model: str = "", views: str = NO_VIEWS,
        view_steps: float | None = None, seed: float = 0, resolution: float = 256, background: str = "auto",
        elevation: str | float | None = None, texture: str = "vertex", faces: float | None = None, best_of: float = 1,
        formats: Sequence[str] = (), turntable: bool = False, request: gr.Request = None,
    ) -> tuple[str, list[str], dict[str, Any]]:  # fmt: skip
        """Lift one photo to a mesh; gives the GLB, all files, and facts about them."""
        if photo is None:
            raise page_error("Choose a photo first (PNG or JPEG).")
        values = {name: value for name, value in locals().items() if name in {each.name for each in fields(Choices)}}
        values["model"] = model or self.bench.first
        with self._raising():
            session = self.sessions.of(request.session_hash)
            sides = {"back": back, "left": left, "right": right}
            result = finished(self.lifting.lift(session, photo, sides, Choices.of(values)))
            return (
                str(result.files[0]),
                [str(path) for path in result.files],
                {**result.facts, "command": result.command},
            )
        raise AssertionError("the block either returns or raises")

    def views_api(
        self, photo: Any, views: str = "tiny-views", view_steps: float | None = None, seed: float = 0,
        background: str = "auto", elevation: str | float | None = None, request: gr.Request = None,
    ) -> tuple[list[str], dict[str, Any]]:  # fmt: skip
        """Make views of one photo's object; gives the pictures, the cameras, and facts about them."""
        if photo is None:
            raise page_error("Choose a photo first (PNG or JPEG).")
        told = {
            "views": views,
            "view_steps": view_steps,
            "seed": seed,
            "background": background,
            "elevation": elevation,
        }
        with self._raising():
            session = self.sessions.of(request.session_hash)
            paths, facts = finished(self.lifting.views(session, photo, Choices.of(told)))
            return [str(path) for path in paths], facts
        raise AssertionError("the block either returns or raises")

    def models_api(self) -> list[dict[str, Any]]:
        """What is known about every model, and which names this page takes."""
        rows = words.model_rows([info.as_json() for info in models()])
        runs = self.bench.runs()
        makers = set(self.bench.generator_names())
        stages = {name: "views" if name in makers else "reconstruction" for name in runs}
        return [*rows, *({"name": name, "stage": stages[name], "here": True, "run": True} for name in runs)]

    # What comes in.

    def _own(self, part: Any, fallback: str = "photo.png") -> None:
        """Let a part give an `Upload` in place of what gradio would make of the file, and take nothing but uploads."""
        part.preprocess = lambda payload: self._uploaded(payload, fallback)
        self._keep_home(part)

    def _keep_home(self, part: Any) -> None:
        """Let a part fetch nothing from elsewhere, whatever a client calls its path."""
        usual = part.async_move_resource_to_block_cache

        async def move(path: Any) -> Any:
            if "://" in str(path):
                raise page_error("This server fetches nothing from elsewhere. Upload the file.")
            return await usual(path)

        part.async_move_resource_to_block_cache = move

    def _uploaded(self, payload: Any, fallback: str) -> Upload | None:
        if payload is None:
            return None
        with self._raising():
            return self._upload(payload.path, payload.orig_name, fallback)
        raise AssertionError("the block either returns or raises")

    def _upload(self, path: str | None, name: str | None, fallback: str) -> Upload:
        if not path:
            raise RefusedError("Upload the file itself.")
        if Path(path).absolute().is_relative_to(self.sessions.root.absolute()):
            raise RefusedError("This file was not uploaded here. Choose a file and upload it.")
        return own_upload(path, name, self.store, fallback)

    def _painted(self, payload: Any) -> list[Path | BytesIO]:
        """What was painted, for `read_layers`; the photo below it is not taken from the client."""
        if payload is None:
            return []
        if len(payload.layers or ()) > MOST_LAYERS:
            raise page_error("There are too many painted layers. Load the photo again.")
        with self._raising():
            if payload.id is not None:
                cached = self.editor.blob_storage.pop(payload.id, None)
                return [] if cached is None else [BytesIO(blob) for blob in (cached.layers or ())[:MOST_LAYERS] if blob]
            return [self._upload(layer.path, layer.orig_name, "layer.png").path for layer in payload.layers or ()]
        raise AssertionError("the block either returns or raises")

    def _saying(self) -> Saying:
        return Saying()

    def _raising(self) -> Raising:
        return Raising()


def finished(steps: Iterator[Any]) -> Any:
    """What a job returns, without looking at how far it is."""
    for now in steps:
        if isinstance(now, Done):
            return now.value
    raise AssertionError("a job ends with what it returns, or raises")


class Strokes(dict[str, Any]):
    """What visitors paint until they press the button, the latest few: gradio would keep all of it for ever."""

    def __setitem__(self, key: str, value: Any) -> None:
        self.pop(key, None)
        super().__setitem__(key, value)
        while len(self) > _MOST_STROKES:
            self.pop(next(iter(self)))


def limited_strokes(accept: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Gradio's taker of painted layers, for as many layers as a painting has; it would make room for any number."""

    def accept_blobs(data: Any) -> Any:
        index = data.data.get("index")
        if index not in (None, "", "null") and not 0 <= int(index) < MOST_LAYERS:
            raise page_error("There are too many painted layers. Load the photo again.")
        return accept(data)

    accept_blobs._is_server_fn = True  # type: ignore[attr-defined]
    return accept_blobs


class Saying:
    """A block whose errors become a sentence, ``text``, in place of being raised; ``kind`` says how bad it is."""

    text, kind = "", "bad"

    def __enter__(self) -> Saying:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is None or isinstance(error, GeneratorExit):
            return False
        if isinstance(error, Stopped):
            self.text, self.kind = "Stopped. What was being worked on is gone; nothing else was touched.", "note"
            return True
        if not isinstance(error, Exception):
            return False
        self.text = friendly_text(error)
        return True


class Raising:
    """A block whose errors become gradio's, which clients are told and which are no crash of the server."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Stopped):
            raise page_error("Stopped.") from error
        if isinstance(error, Exception) and not isinstance(error, gr.Error):
            raise page_error(friendly_text(error)) from error


def friendly_text(error: Exception) -> str:
    """An error for visitors: ours as they are, anything else without its insides, which go to the log."""
    if isinstance(error, TriliftError):
        return str(error)
    if isinstance(error, TypeError | ValueError | OverflowError):
        log.info("values that are not understood: %s", error)
        return "One of the values is not understood. Look at the settings and try again."
    log.error("the page failed", exc_info=error)
    return _LOST


def page_error(text: str) -> gr.Error:
    """An error that the page shows to its user and does not print as a crash."""
    return gr.Error(text, title="Not lifted", duration=None, print_exception=False)


def limits_text() -> str:
    """What is taken, for people."""
    return f"at most {MAX_UPLOAD_BYTES // 2**20} MB and {MAX_PIXELS // 10**6} megapixels"
