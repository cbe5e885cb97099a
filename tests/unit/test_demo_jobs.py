"""Jobs, sessions and settings of the page, without the page."""

from __future__ import annotations

import shlex
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from demo.bench import Bench
from demo.guard import MAX_BODY_BYTES, Guard
from demo.intake import RefusedError, Upload
from demo.jobs import Done, Job, Pace, Snapshot, Stopped, one_worker, watch
from demo.recipe import Choices, side_photos
from demo.sessions import IDLE_SECONDS, MAX_RESULTS, Result, Sessions
from demo.words import BUSY, progress_html, results_html, said_html
from demo.work import plain_paths
from tests.fakes import FakeModel, draw_photo
from trilift import ImageTo3D, LiftResult, LiftSettings, TriliftError, cli
from trilift.settings import FORMATS


def run(job: Job, work: Any, pace: Pace | None = None) -> list[Any]:
    return list(watch(job, work, pace or Pace(), one_worker()))


def test_a_job_tells_its_stages_and_ends_with_its_value() -> None:
    def work(job: Job) -> str:
        job.on_stage("load")
        job.on_stage("views")
        job.on_step(3, 4)
        job.show("a view")
        return "value"

    *snapshots, end = run(Job("a"), work)
    assert end == Done("value")
    assert [item for now in snapshots for item in now.news] == ["a view"]
    last = snapshots[-1]
    assert (last.stage, last.done, last.total) == ("views", 3, 4)
    assert [name for name, _ in last.passed] == ["load"]
    assert all(0 <= now.fraction < 1 for now in snapshots)


def test_a_job_stops_at_the_next_layer_of_a_network() -> None:
    layer, passes = torch.nn.Linear(2, 2), [0]
    job = Job()

    def work(job: Job) -> None:
        while True:  # no stage and no step: only layers
            layer(torch.zeros(1, 2))
            passes[0] += 1
            time.sleep(0.005)

    watching = watch(job, work, Pace(), one_worker())
    next(watching)
    job.stop()
    with pytest.raises(Stopped):
        list(watching)
    done = passes[0]
    time.sleep(0.1)
    assert passes[0] == done, "the thread has ended"
    layer(torch.zeros(1, 2))  # nobody else's networks are stopped


def test_leaving_the_page_stops_the_job() -> None:
    job, ended = Job(), threading.Event()

    def work(job: Job) -> None:
        try:
            while True:
                job.on_stage("mesh")
                time.sleep(0.01)
        finally:
            ended.set()

    watching = watch(job, work, Pace(), one_worker())
    next(watching)
    watching.close()  # type: ignore[attr-defined]
    assert ended.wait(10)


def test_a_stopped_lift_is_no_failed_photo(tmp_path: Path) -> None:
    bench, job = Bench(load=lambda *_, **__: ImageTo3D(FakeModel())), Job()
    job.stop()
    with pytest.raises(Stopped):
        bench.lift(job, "tiny", None, draw_photo(tmp_path / "a.png"), LiftSettings(resolution=32))
    with pytest.raises(Stopped):
        photos = [draw_photo(tmp_path / "photos" / f"{k}.png") for k in range(3)]
        list(bench.folder(job, "tiny", None, photos, tmp_path / "out", LiftSettings(resolution=32)))
    assert list((tmp_path / "out").rglob("asset.json")) == []


def test_errors_of_the_work_reach_the_watcher() -> None:
    def work(job: Job) -> None:
        raise TriliftError("no object")

    with pytest.raises(TriliftError, match="no object"):
        run(Job(), work)


def test_jobs_take_turns() -> None:
    worker, order = one_worker(), []

    def work(job: Job) -> None:
        order.append("in")
        time.sleep(0.05)
        order.append("out")

    threads = [threading.Thread(target=lambda: list(watch(Job(), work, Pace(), worker))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order == ["in", "out"] * 3


def test_the_time_left_is_what_earlier_jobs_took() -> None:
    pace = Pace()
    pace.learn("a", {"load": 2.0, "mesh": 6.0})
    pace.learn("a", {"load": 4.0, "mesh": 6.0})
    assert pace.expected("a") == {"load": 3.0, "mesh": 6.0}
    seen: list[Snapshot] = []
    for now in watch(Job("a"), lambda job: (job.on_stage("load"), time.sleep(0.6)), pace, one_worker()):
        seen += [now] if isinstance(now, Snapshot) and now.stage else []
    # Of 3 s for reading little is over, and 6 s of meshing follow.
    assert seen[0].left == pytest.approx(9, abs=1)
    assert seen[0].fraction == pytest.approx(0, abs=0.2)


def test_sessions_are_apart_and_go_away(tmp_path: Path) -> None:
    now = [0.0]
    sessions = Sessions(tmp_path / "s", clock=lambda: now[0])
    mine, yours = sessions.of("mine"), sessions.of("yours")
    assert sessions.of("mine") is mine and mine.folder != yours.folder
    shared = draw_photo(tmp_path / "up" / "x" / "ball.png")
    upload = Upload(shared, "odd name.png")
    assert mine.photo(upload) == mine.photo(upload) != yours.photo(upload)
    job = mine.begin("a")
    sessions.drop("mine")
    assert job.stopping and not mine.folder.exists()
    assert shared.is_file(), "the other visitor has uploaded the same"
    now[0] = IDLE_SECONDS + 1
    sessions.of("third")
    assert not yours.folder.exists() and not shared.exists() and len(sessions) == 1
    sessions.close()
    assert list((tmp_path / "s").iterdir()) == []


def test_the_history_is_bounded(tmp_path: Path) -> None:
    session = Sessions(tmp_path).of("a")
    for number in range(MAX_RESULTS + 2):
        folder = session.fresh("results")
        folder.mkdir(parents=True)
        session.add(Result(str(number), folder, (), folder, (), None, "", ""))
    assert [result.title for result in session.results] == [str(k) for k in range(2, MAX_RESULTS + 2)]
    assert len(list((session.folder / "results").iterdir())) == MAX_RESULTS
    assert session.take_newest() is session.results[-1] and session.take_newest() is None


def test_messages_do_not_say_where_the_server_keeps_files(tmp_path: Path) -> None:
    text = f"{tmp_path}/photos/12/chair.png: is bad, not {tmp_path}/photos/3/back.png"
    assert plain_paths(text, tmp_path) == "chair.png: is bad, not back.png"
    assert plain_paths("nothing of ours: /etc/passwd", tmp_path) == "nothing of ours: /etc/passwd"


# Settings and the command line.


def lift_settings(words: list[str]) -> LiftSettings:
    return cli._settings(cli.build_parser().parse_args(words))


@pytest.mark.parametrize(
    "choices",
    [
        pytest.param(Choices(), id="defaults"),
        pytest.param(Choices(resolution=128, seed=7, elevation=-12.5, faces=500, best_of=3), id="numbers"),
        pytest.param(Choices(background="keep", formats=("glb", "obj", "stl"), turntable=True), id="files"),
        pytest.param(Choices(texture="baked", views="tiny-views", view_steps=4), id="views"),
        pytest.param(Choices(view_steps=4), id="steps without a generator"),
    ],
)
def test_the_command_line_says_the_same_as_the_page(choices: Choices) -> None:
    words = shlex.split(choices.command("my chair's photo.png", ["back=b c.png"]))
    assert words[:5] == ["trilift", "lift", "my chair's photo.png", "-o", "out"]
    assert lift_settings(words[1:]) == choices.settings(["back=b c.png"])
    parsed = cli.build_parser().parse_args(words[1:])
    assert (parsed.model, parsed.views) == ("tiny", choices.generator)


def test_empty_fields_leave_it_to_the_model() -> None:
    made = Choices.of(
        {"faces": 0, "view_steps": None, "elevation": None, "seed": 3.0, "formats": ["obj", "glb", "obj"]}
    )
    assert made == Choices(seed=3, formats=("glb", "obj"))
    assert set(made.formats) <= set(FORMATS)
    for text, degrees in (("", None), ("20", 20), (" -12.5° ", -12.5), (0, 0)):
        assert Choices.of({"elevation": text}).elevation == degrees
    with pytest.raises(RefusedError, match="elevation is 'high'; expected degrees"):
        Choices.of({"elevation": "high"})
    assert side_photos({"back": Path("b.png"), "left": None}) == ["back=b.png"]


def test_the_page_offers_runs_and_refuses_other_paths(tmp_path: Path) -> None:
    from trilift.registry import EMBEDDED

    for run_folder, source in (("mine/model", "tiny"), ("deep/er/model", "tiny"), ("views", "tiny-views")):
        folder = tmp_path / run_folder
        folder.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (folder / name).symlink_to(EMBEDDED / source / name)
    (tmp_path / "empty").mkdir()
    bench = Bench(models_dir=tmp_path, load=lambda *_, **__: ImageTo3D(FakeModel()))
    assert {"mine", "deep/er", "views"} == set(bench.runs())
    assert bench.reconstruction_names()[0] == "tiny"
    assert set(bench.reconstruction_names()) >= {"mine", "deep/er"}
    assert "views" in bench.generator_names() and "views" not in bench.reconstruction_names()
    assert bench.source("mine") == str(tmp_path / "mine" / "model")
    for name in ("/etc", "../x", str(tmp_path / "mine"), "owner/name"):
        with pytest.raises(RefusedError, match="is not a model of this page"):
            bench.source(name)


def test_at_most_two_models_stay_in_memory() -> None:
    loaded: list[str] = []
    bench = Bench(load=lambda name, **_: loaded.append(name) or ImageTo3D(FakeModel()))  # type: ignore[func-returns-value]
    bench.source = lambda name: name  # type: ignore[method-assign]
    for name in ("a", "b", "a", "c", "a", "b"):
        bench.pipe(name, None)
    assert loaded == ["a", "b", "c", "b"]


# Words and the guard.


def test_nothing_of_a_visitor_stands_unescaped() -> None:
    bad = "<img src=x onerror=alert(1)>"
    result = LiftResult(bad, "failed", 1.0, error=bad)
    for html in (said_html(bad), progress_html(Snapshot(stage=bad)), results_html([result])):
        assert "<img" not in html.lower() and "&lt;img" in html.lower()


def ask(guard: Guard, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, bytes, dict[bytes, bytes]]:
    """Status, body and headers of an answer."""
    import asyncio

    sent: list[Any] = []

    async def go() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await guard({"type": "http", "path": path, "method": method, "headers": raw}, receive, send)

    asyncio.run(go())
    return sent[0]["status"], sent[1]["body"], dict(sent[0]["headers"])


async def plain_app(scope: Any, receive: Any, send: Any) -> None:
    full = scope["path"] == "/full"
    await send({"type": "http.response.start", "status": 503 if full else 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"detail":"Queue is full. Max size is 1."}' if full else b"ok"})


@pytest.mark.parametrize(
    ("question", "status"),
    [
        pytest.param({"host": "127.0.0.1:7860"}, 200, id="this machine"),
        pytest.param({"host": "[::1]:7860"}, 200, id="this machine by its longer address"),
        pytest.param({"host": "evil.example:7860"}, 421, id="another name for this machine"),
        pytest.param(
            {"host": "localhost", "path": "/gradio_api/file=http://10.0.0.1/x"}, 403, id="file from elsewhere"
        ),
        pytest.param(
            {"host": "localhost", "path": "/gradio_api/file/http://10.0.0.1/x"},
            403,
            id="file from elsewhere by the old road",
        ),
        pytest.param({"host": "localhost", "path": "/gradio_api/proxy=x"}, 403, id="proxy"),
        pytest.param({"host": "localhost", "method": "POST"}, 411, id="no length"),
        pytest.param({"host": "localhost", "method": "POST", "content_length": "9"}, 200, id="a small one"),
        pytest.param(
            {"host": "localhost", "method": "POST", "content_length": str(MAX_BODY_BYTES + 1)}, 413, id="a large one"
        ),
    ],
)
def test_the_guard_lets_in_what_belongs_here(question: dict[str, str], status: int) -> None:
    found, _, headers = ask(Guard(plain_app), **question)
    assert found == status
    assert b"default-src 'self'" in headers[b"content-security-policy"]


def test_the_guard_says_politely_that_the_queue_is_full() -> None:
    status, body, headers = ask(Guard(plain_app), "/full", host="localhost")
    assert status == 503 and BUSY.encode() in body
    assert int(headers[b"content-length"]) == len(body) and headers[b"retry-after"] == b"30"


def test_a_full_store_takes_no_more_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.guard.MAX_STORE_BYTES", 10)
    (tmp_path / "a").write_bytes(b"0" * 11)
    guard = Guard(plain_app, store=tmp_path)
    ask_upload = {"path": "/gradio_api/upload", "method": "POST", "host": "localhost", "content_length": "5"}
    assert ask(guard, **ask_upload)[0] == 507
    (tmp_path / "a").unlink()
    assert ask(guard, **ask_upload)[0] == 200


def test_what_is_painted_is_kept_for_a_few_and_a_few_layers() -> None:
    from types import SimpleNamespace

    from demo.page import MOST_LAYERS, Strokes, limited_strokes, load_gradio

    load_gradio()

    kept = Strokes()
    for number in range(100):
        kept[str(number)] = number
    assert len(kept) < 20 and kept["99"] == 99 and "0" not in kept
    taken: list[Any] = []
    accept = limited_strokes(taken.append)
    for index in (None, "null", "0", str(MOST_LAYERS - 1)):
        accept(SimpleNamespace(data={"index": index}))
    assert len(taken) == 4
    for index in ("50000000", "-1", str(MOST_LAYERS)):
        with pytest.raises(Exception, match="too many painted layers"):
            accept(SimpleNamespace(data={"index": index}))
    assert len(taken) == 4
