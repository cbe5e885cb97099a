"""What stands in front of gradio: limits, headers that keep the page at home, a health address, polite refusals.

Pure ASGI, so that streams of progress pass through untouched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from .intake import MAX_UPLOAD_BYTES
from .words import BUSY

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = MAX_UPLOAD_BYTES + 16 * 2**20
MAX_STORE_BYTES = 8 * 2**30
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
# Gradio's page has scripts and styles in line and builds workers from blobs; nothing may come from or go elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
# Gradio would fetch addresses and other spaces' files for whoever asks.
_PROXIES = re.compile(r"/(file[=/]\s*https?:|proxy=|stream/https?:)", re.I)


class Guard:
    """Middleware around the page.

    Args:
        app: what it stands in front of.
        local: whether only this machine may be addressed, so that no page of another site can be pointed here by its
            name server; or what says so when a request comes.
        store: folder of uploads and results; new uploads are refused while it holds more than `MAX_STORE_BYTES`.
    """

    def __init__(self, app: App, local: bool | Callable[[], bool] = True, store: Path | None = None) -> None:
        self._app, self._store = app, store
        self._is_local = local if callable(local) else lambda: local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        await self._app(scope, receive, _Dressed(send).send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence for requests that are not passed on."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "").rsplit(":", 1)[0] if not headers.get("host", "").endswith("]") else "[::1]"
        if host not in LOOPBACK and self._is_local():
            return 421, "This page is for the machine that it runs on. Start it with --host to let others in."
        if _PROXIES.search(scope["path"]):
            return 403, "This server fetches nothing from elsewhere."
        if scope["method"] in ("POST", "PUT", "PATCH"):
            length = headers.get("content-length", "")
            if not length.isdigit():
                return 411, "A request needs a content-length here."
            if int(length) > MAX_BODY_BYTES:
                return 413, f"This is too large; at most {MAX_UPLOAD_BYTES // 2**20} MB a file are taken."
            if scope["path"].endswith("/upload") and self._full():
                return 507, "The server's disk space for visitors is used up just now. Try again later."
        return None

    def _full(self) -> bool:
        if self._store is None:
            return False
        return sum(file.lstat().st_size for file in self._store.rglob("*") if file.is_file()) > MAX_STORE_BYTES


class _Dressed:
    """Adds headers to an answer, and says in plain words that the queue is full."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._busy: Message | None = None

    async def send(self, message: Message) -> None:
        """See ASGI."""
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
            if message["status"] == 503:
                self._busy = message
                return
        elif self._busy is not None and message["type"] == "http.response.body":
            start, self._busy = self._busy, None
            body = message.get("body", b"")
            if b"Queue is full" in body:
                body = json.dumps({"detail": BUSY}).encode()
                kept = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
                start["headers"] = [*kept, (b"content-length", str(len(body)).encode()), (b"retry-after", b"30")]
            await self._send(start)
            await self._send({**message, "body": body})
            return
        await self._send(message)


async def _answer(send: Send, status: int, text: str) -> None:
    body = json.dumps({"detail": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
