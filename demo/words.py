"""What the page says: texts and small pieces of HTML, in which nothing of a visitor's stands unescaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from trilift import Asset, LiftResult
from trilift.progress import STAGE_WORDS, in_words

from .jobs import Snapshot

_HERE = {"photos": "lifting photos", "model": "loading the model", "turntable": "drawing the turntable"}
BUSY = (
    "The server is busy: as many lifts are waiting as it takes on. Nothing is wrong with your photo; try again in a "
    "minute."
)


def stage_words(stage: str) -> str:
    """A stage for people."""
    return _HERE.get(stage) or STAGE_WORDS.get(stage) or stage or "getting ready"


def progress_html(now: Snapshot) -> str:
    """How far a job is, with the stages behind it and the time left."""
    percent = round(100 * now.fraction)
    steps = f": step {now.done} of {now.total}" if now.total else ""
    left = "" if now.left is None or now.left < 1 else f", about {in_words(now.left)} left"
    title = f"{stage_words(now.stage)}{steps}"
    behind = "".join(f"<li>{escape(stage_words(name))}: {seconds:.1f} s</li>" for name, seconds in now.passed)
    return (
        f'<div class="tl-status" role="status" aria-live="polite"><b>{escape(title.capitalize())}</b>'
        f"<span>{now.elapsed:.0f} s{escape(left)}</span></div>"
        f'<div class="tl-bar" role="progressbar" aria-label="Progress of the lift" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}"><i style="width:{percent}%"></i></div>'
        f'<ul class="tl-stages">{behind}</ul>'
    )


def said_html(text: str, kind: str = "note") -> str:
    """A sentence or several in the status place; ``kind`` is ``note``, ``good`` or ``bad``."""
    lines = "<br>".join(escape(line) for line in text.splitlines())
    role = "alert" if kind == "bad" else "status"
    return f'<div class="tl-said tl-{escape(kind)}" role="{role}">{lines}</div>'


def worth_words(expected: float) -> str:
    """What an expected overlap with the true shape means, in words."""
    for least, words in ((0.6, "good"), (0.45, "fair"), (0.3, "rough")):
        if expected >= least:
            return words
    return "a guess"


def scores_html(asset: Asset) -> str:
    """Size, seconds, what the model itself thinks of its answer, and warnings."""
    record, mesh = asset.record, asset.mesh
    rows = {
        "Mesh": f"{len(mesh.vertices):,} vertices, {len(mesh.faces):,} triangles",
        "Closed": "yes" if mesh.is_watertight else "no",
        "Time": f"{record['seconds']['lift']:.1f} s",
        "Model": str(record["model"]["name"]),
    }
    expected = record["checks"].get("expected_iou")
    if expected is not None:
        about = "overlap with the true shape that the model itself expects, 0 to 1"
        rows["Expected quality"] = f"{worth_words(expected)} ({expected:.2f}: {about})"
    table = "".join(f"<tr><th scope='row'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
    warnings = "".join(f"<li>{escape(text)}</li>" for text in record["warnings"])
    return f'<table class="tl-scores">{table}</table>' + (f'<ul class="tl-warn">{warnings}</ul>' if warnings else "")


def results_html(results: Sequence[LiftResult]) -> str:
    """A table of a folder run."""
    rows = "".join(
        f"<tr><td>{escape(result.source)}</td><td>{escape(result.status)}</td><td>{result.seconds:.1f} s</td>"
        f"<td>{escape(result.error or '; '.join(result.warnings))}</td></tr>"
        for result in results
    )
    head = (
        "<tr><th scope='col'>Photo</th><th scope='col'>Result</th><th scope='col'>Time</th><th scope='col'></th></tr>"
    )
    return f'<table class="tl-scores">{head}{rows}</table>' if results else ""


def model_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Facts on models as the API gives them; where this server keeps its files is left out."""
    return [{key: value for key, value in row.items() if key != "path"} for row in rows]


# A picture that is pasted anywhere on the page becomes the photo (gradio's own button asks for a permission first), and
# buttons that are nothing but a colour or a picture get names that screen readers can read. On a phone it scrolls to
# what has been made.
SCRIPT = """() => {
  document.addEventListener('paste', async event => {
    const file = [...(event.clipboardData?.files ?? [])].find(each => each.type.startsWith('image/'));
    const box = document.querySelector('#tl-photo');
    if (!file || !box) return;
    event.preventDefault();
    box.querySelector('[aria-label="Remove Image"]')?.click();
    box.querySelector('[aria-label="Upload file"]')?.click();
    for (let tries = 0; tries < 60; tries++) {
      const input = box.querySelector('input[type=file]');
      if (input) {
        const carrier = new DataTransfer();
        carrier.items.add(file);
        input.files = carrier.files;
        input.dispatchEvent(new Event('change', {bubbles: true}));
        return;
      }
      await new Promise(ready => setTimeout(ready, 50));
    }
  });
  const titled = button => {
    const file = decodeURIComponent(button.querySelector('img').src.split('/').pop()).replace(/\\.[a-z]+$/i, '');
    const title = button.closest('.block')?.querySelector('[data-testid="block-label"]')?.textContent.trim();
    return button.matches('.gallery-item') ? `Example: ${file}` : `Look closer: ${title || file}`;
  };
  const named = () => {
    const colors = ['Green: belongs to the object', 'Red: does not belong to it'];
    document.querySelectorAll('#tl-editor button.color:not([aria-label])').forEach(
      (button, index) => button.setAttribute('aria-label', colors[index % 2]));
    document.querySelectorAll('button:not([aria-label]):not([title])').forEach(button => {
      if (button.querySelector('img[src]') && !button.textContent.trim()) {
        button.setAttribute('aria-label', titled(button));
      }
    });
  };
  let last = null;  // on a phone the object is below the fold: when it is done, it comes into view
  const shown = () => {
    const good = document.querySelector('#tl-state .tl-good');
    if (good && good !== last && innerWidth <= 640) document.querySelector('#tl-viewer')?.scrollIntoView();
    last = good;
  };
  new MutationObserver(() => { named(); shown(); }).observe(document.body, {childList: true, subtree: true});
  named();
}"""
CSS = """
.gradio-container > main { width: 100%; max-width: 1280px !important; margin: 0 auto !important; }
.gradio-container > main > .wrap, .gradio-container .contain { width: 100%; }
.tl-scores, .tl-scores * { border: 0 !important; }
#tl-about textarea { min-height: 2.6em; }
#tl-head h1 { margin: 0 0 .1em 0; font-size: 1.7em; letter-spacing: -.01em; }
#tl-head p { margin: 0; opacity: .8; }
#tl-lift { min-height: 52px; font-size: 1.1em; }
#tl-cancel { min-height: 52px; }
.tl-status { display: flex; justify-content: space-between; gap: 1em; margin-bottom: .4em; }
.tl-bar { height: 10px; border-radius: 5px; background: var(--border-color-primary, #ddd); overflow: hidden; }
.tl-bar i { display: block; height: 100%; background: var(--color-accent, #2563eb); transition: width .3s linear; }
.tl-stages { margin: .4em 0 0 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .2em 1em;
  font-size: .85em; opacity: .75; }
.tl-said { padding: .5em .8em; border-radius: 8px; border-left: 4px solid var(--color-accent, #2563eb);
  background: var(--background-fill-secondary, #f4f4f5); overflow-wrap: anywhere; }
.tl-good { border-left-color: #15803d; } .tl-bad { border-left-color: #b91c1c; }
.tl-scores { width: 100%; border-collapse: collapse; font-size: .95em; }
.tl-scores th { text-align: left; font-weight: 600; padding: .2em .8em .2em 0; white-space: nowrap;
  vertical-align: top; }
.tl-scores td { padding: .2em .5em .2em 0; overflow-wrap: anywhere; }
.tl-warn { font-size: .9em; margin: .4em 0 0 1.1em; }
#tl-viewer canvas { touch-action: none; }
@media (max-width: 640px) {
  .gradio-container { padding: 8px !important; }
  #tl-columns { flex-direction: column; } #tl-columns > * { min-width: 0 !important; width: 100%; }
  #tl-lift, #tl-cancel { min-height: 56px; }
}
"""
