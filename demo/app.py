"""The page of ``trilift demo``: where it listens, what it is told, and what goes when it ends.

::

    main ──► Bench (models), Sessions (visitors) ──► build_app ──► Page ──► launch behind a Guard

Everything stays on the machine that runs it: no analytics, no fonts or scripts from elsewhere, 127.0.0.1 unless
another host is named, and no public link unless ``--share`` asks for one. docs/demo.md has the API.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trilift
from trilift import ImageTo3D, TriliftError

from .bench import Bench
from .guard import LOOPBACK, Guard
from .intake import MAX_UPLOAD_BYTES
from .sessions import Sessions
from .words import CSS, SCRIPT

if TYPE_CHECKING:
    import gradio

MAX_WAITING = 16
EXAMPLES = ("chair.png", "mushroom-grey.png", "teapot.png", "car.png", "house.png")
# Uploads that no session takes care of are looked at every hour and removed when they are four hours old.
_CACHE_SECONDS = (3600, 4 * 3600)
_SHARED = (
    "--share: whoever has the public link can use this page, and this machine's time, from anywhere; photos and "
    "results pass through gradio's servers. --auth NAME:PASSWORD keeps others out."
)
_SHARED_WITH_AUTH = (
    "--share: whoever has the public link, the name and the password can use this page, and this machine's time, from "
    "anywhere; photos and results pass through gradio's servers."
)
_NO_LINK = (
    "--share: there is no public link (gradio says why above: it needs its servers and fetches a program for the "
    "tunnel). The page runs for this machine alone, at {url}"
)
_STORE_VARIABLE = "GRADIO_TEMP_DIR"


def build_app(
    bench: Bench | Callable[[], ImageTo3D], store: Path | None = None, *, served: bool = False
) -> gradio.Blocks:
    """Lay out the page.

    Args:
        bench: the models; or what gives one pipeline when called, under the name ``tiny``.
        store: folder of uploads and results; gradio's own when left out (its environment variable, or a temporary one).
        served: whether visitors come from other machines, so that the page does not say that nothing leaves theirs.

    Returns:
        The page, not yet listening; ``launch`` it with `launch_options`. Its sessions are in its attribute
        ``sessions``; closing these removes all that visitors have left.
    """
    # Read by gradio when it is imported.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    from .page import Page

    if not isinstance(bench, Bench):
        load = bench
        bench = Bench(load=lambda *_, **__: load())
    if store is None:
        store = Path(os.environ.get(_STORE_VARIABLE) or Path(tempfile.gettempdir(), "gradio"))
    examples = _examples()
    sessions = Sessions(store / "sessions", shared=examples)
    blocks = gr.Blocks(title="trilift", analytics_enabled=False, fill_width=True, delete_cache=_CACHE_SECONDS)
    with blocks:
        page = Page(bench, sessions, store, examples, served)
        page.lay_out()
        blocks.unload(page.leave)
    blocks.queue(max_size=MAX_WAITING, api_open=False)
    blocks.sessions = sessions
    return blocks


def _examples() -> list[Path]:
    folder = Path(trilift.__file__).parent / "examples"
    return [folder / name for name in EXAMPLES if (folder / name).is_file()]


def launch_options(
    host: str = "127.0.0.1",
    port: int = 0,
    share: bool = False,
    auth: tuple[str, str] | None = None,
    blocks: gradio.Blocks | None = None,
) -> dict[str, Any]:
    """Arguments for ``launch``: where to listen, and nothing from or for elsewhere.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        share: also make a public link through gradio's servers.
        auth: name and password that visitors must give.
        blocks: the page, for the health address; it says less without.
    """
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.routing import Route

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    store = None if blocks is None else blocks.sessions.root.parent
    guard = Middleware(Guard, local=lambda: host in LOOPBACK and not _has_link(blocks, share), store=store)
    return {
        "server_name": host,
        "server_port": port or _free_port(host),
        "share": share,
        "auth": auth,
        "allowed_paths": [],
        "max_file_size": MAX_UPLOAD_BYTES,
        "show_error": False,
        "footer_links": ["api"],
        "run_history": False,
        "ssr_mode": False,
        "mcp_server": False,
        "theme": gr.themes.Base(**fonts),
        "css": CSS,
        "js": SCRIPT,
        "app_kwargs": {"middleware": [guard], "routes": [Route("/health", _health(blocks))]},
    }


def _has_link(blocks: gradio.Blocks | None, share: bool) -> bool:
    """Whether visitors may come by another name; a link that was asked for may not have come to be."""
    return share and (blocks is None or blocks.share_url is not None)


def _health(blocks: gradio.Blocks | None) -> Callable[[Any], Any]:
    """What answers at ``/health``: that the server is up, its version, and how busy it is."""
    from starlette.responses import JSONResponse

    async def health(_: Any) -> JSONResponse:
        about: dict[str, Any] = {"status": "ok", "trilift": trilift.__version__}
        if blocks is not None:
            about |= {"waiting": len(blocks._queue), "max_waiting": MAX_WAITING, "sessions": len(blocks.sessions)}
        return JSONResponse(about)

    return health


def _free_port(host: str) -> int:
    """A port that nobody listens on just now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def parse_auth(text: str) -> tuple[str, str]:
    """``NAME:PASSWORD`` → both.

    Raises:
        TriliftError: one of them is missing.
    """
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise TriliftError("--auth: expected NAME:PASSWORD, both of at least one character.")
    return name, password


@contextmanager
def private_store() -> Iterator[Path]:
    """A new folder for uploads and results that only this user can read; it goes when the block ends."""
    before = os.environ.get(_STORE_VARIABLE)
    store = Path(tempfile.mkdtemp(prefix="trilift-demo-"))
    os.environ[_STORE_VARIABLE] = str(store)
    try:
        yield store
    finally:
        if before is None:
            del os.environ[_STORE_VARIABLE]
        else:
            os.environ[_STORE_VARIABLE] = before
        shutil.rmtree(store, ignore_errors=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="trilift demo", description="A small page in the browser.")
    parser.add_argument("--host", default="127.0.0.1", help="listen here (default %(default)s: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port, 0 for any free one (default %(default)s)")
    parser.add_argument(
        "--share", action="store_true", help="also make a public link through gradio's servers; say --auth, too"
    )
    parser.add_argument("--auth", metavar="NAME:PASSWORD", help="ask visitors for these")
    parser.add_argument("--model", default="tiny", help="a name of trilift models, or a folder (default %(default)s)")
    parser.add_argument(
        "--models-dir", type=Path, metavar="DIR", help="offer the models of training runs below DIR, too"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Show the page until it is interrupted; returns the exit status.

    Raises:
        TriliftError: the weights cannot be loaded, a wrong ``--auth`` or ``--models-dir``, or the address cannot be
            listened on. A public link that cannot be made is told on stderr, and the page runs without.
    """
    args = _arguments(argv)
    auth = None if args.auth is None else parse_auth(args.auth)
    if args.models_dir is not None and not args.models_dir.is_dir():
        raise TriliftError(f"--models-dir {args.models_dir}: there is no such folder.")
    bench = Bench(args.model, args.models_dir, args.device)
    bench.pipe(args.model, None)  # before the page is up, so that missing weights are said here and not to a visitor
    with private_store() as store:
        blocks = build_app(bench, store, served=args.share or args.host not in LOOPBACK)
        if args.share:
            _say(_SHARED if auth is None else _SHARED_WITH_AUTH)
        try:
            options = launch_options(args.host, args.port, args.share, auth, blocks)
            blocks.launch(**options, prevent_thread_lock=args.share)
            if args.share:
                if blocks.share_url is None:
                    _say(_NO_LINK.format(url=blocks.local_url))
                blocks.block_thread()
        except OSError as error:
            raise TriliftError(f"{args.host}:{args.port} cannot be listened on ({error}). Try --port 0.") from error
        finally:
            blocks.sessions.close()
    return 0
