"""How a report's page looks and what its buttons do: style sheet and script, plain text that every page carries."""

from __future__ import annotations

# One hue a stage, the same in the totals and on each card; stages that are not named here are grey.
STAGE_COLORS = {
    "load": "#8ecae6",
    "cutout": "#4f9dde",
    "views": "#9b6dd6",
    "network": "#d65db1",
    "mesh": "#f08a4b",
    "simplify": "#e9c46a",
    "texture": "#e9c46a",
    "check": "#5fb49c",
    "write": "#7a8ba0",
}

STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --ink: #1c2430; --soft: #5b6675; --line: #dfe3e8;
  --link: #1a5fb4; --good: #1f7a4d; --kept: #48607c; --bad: #b3261e; --badback: #fdeceb; --warn: #8a5a00;
  --warnback: #fff4dc; --tile: #eceff3; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1b2129; --ink: #e7ebf0; --soft: #9aa6b5;
  --line: #2d3540; --link: #8ab8f5; --good: #6fd3a0; --kept: #a9bfda; --bad: #ff9d94; --badback: #35201f;
  --warn: #f0c36a; --warnback: #322a18; --tile: #262e38; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.45 system-ui, -apple-system, "Segoe UI",
  Roboto, sans-serif; }
main, header, footer.end { max-width: 1500px; margin: 0 auto; padding: 0 20px; }
a { color: var(--link); }
h1 { font-size: 1.5rem; margin: 22px 0 2px; letter-spacing: -.01em; overflow-wrap: anywhere; }
header p { overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 26px 0 8px; }
.soft { color: var(--soft); }
header p { margin: 2px 0; }
.totals { display: flex; flex-wrap: wrap; gap: 10px; margin: 16px 0 12px; padding: 0; list-style: none; }
.totals li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 8px 16px;
  min-width: 104px; flex: 0 1 auto; }
.totals b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.totals .failed b { color: var(--bad); } .totals .done b { color: var(--good); } .totals .warn b { color: var(--warn); }
.bar { display: flex; height: 6px; border-radius: 3px; overflow: hidden; background: var(--tile); gap: 1px; }
.bar i { min-width: 1px; background: #98a2ad; }
.bar.large { height: 12px; border-radius: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 8px 0 0; padding: 0; list-style: none;
  font-size: .85rem; color: var(--soft); }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px;
  background: #98a2ad; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; background: var(--card); border: 1px solid var(--line);
  font-size: .9rem; }
th, td { text-align: left; padding: 7px 12px; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap;
  width: 1%; }
td { overflow-wrap: anywhere; }
details { margin: 14px 0; } summary { cursor: pointer; }
nav.pages { display: flex; flex-wrap: wrap; gap: 6px; margin: 14px 0; align-items: center; }
nav.pages a, nav.pages b { padding: 3px 11px; border: 1px solid var(--line); border-radius: 7px;
  background: var(--card); text-decoration: none; }
nav.pages b { background: var(--ink); color: var(--page); }
.tools { position: sticky; top: 0; z-index: 2; background: var(--page); padding: 10px 0; display: flex;
  flex-wrap: wrap; gap: 8px; align-items: center; border-bottom: 1px solid var(--line);
  margin: 10px 0 14px; }
.tools input[type=search] { flex: 1 1 220px; min-width: 0; }
.tools input[type=search], .tools select, .tools button { font: inherit; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; padding: 6px 10px; min-height: 38px; }
.tools button { cursor: pointer; }
.tools label { display: inline-flex; gap: 6px; align-items: center; }
.tools output { color: var(--soft); font-variant-numeric: tabular-nums; margin-left: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 430px), 1fr)); gap: 14px;
  align-items: start; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 12px 14px; min-width: 0;
  display: flex; flex-direction: column; gap: 8px; content-visibility: auto; contain-intrinsic-size: auto 330px; }
.card[hidden] { display: none; }
.card:target { outline: 3px solid var(--link); }
.card.failed { border-left: 5px solid var(--bad); }
.card h3 { margin: 0; font-size: 1rem; font-weight: 600; overflow-wrap: anywhere; display: flex; gap: 10px;
  justify-content: space-between; align-items: flex-start; }
.card h3 .folder { color: var(--soft); font-weight: 400; }
.state { font-size: .75rem; font-weight: 600; padding: 1px 9px; border-radius: 99px; border: 1px solid currentColor;
  white-space: nowrap; flex: none; margin-top: 2px; }
.done .state { color: var(--good); } .skipped .state { color: var(--kept); } .failed .state { color: var(--bad); }
figure { margin: 0; background: var(--tile); border-radius: 8px; overflow: hidden; }
figure img { display: block; width: 100%; height: auto; }
figure.single img { width: auto; max-width: 100%; margin: 0 auto; }
.captions { display: flex; font-size: .72rem; color: var(--soft); text-align: center; padding: 3px 0; }
.captions span { flex: 1; }
.scores { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 0; }
.scores div { display: flex; flex-direction: column; }
.scores dt { font-size: .72rem; color: var(--soft); } .scores dd { margin: 0; font-weight: 600;
  font-variant-numeric: tabular-nums; } .scores .low dd { color: var(--warn); }
.error, .warning { margin: 0; padding: 7px 10px; border-radius: 8px; font-size: .88rem; overflow-wrap: anywhere; }
.error { background: var(--badback); color: var(--bad); } .warning { background: var(--warnback); color: var(--warn); }
.small { font-size: .8rem; color: var(--soft); margin: 0; overflow-wrap: anywhere; }
.card .foot { margin-top: auto; padding-top: 2px; }
footer.end { padding: 22px 20px 40px; }
@media (max-width: 560px) { main, header, footer.end { padding-left: 12px; padding-right: 12px; }
  .totals li { flex: 1 1 28%; min-width: 0; padding: 7px 10px; } .tools { position: static; }
  .tools input[type=search] { flex-basis: 100%; } .tools select { flex: 1 1 40%; min-width: 0; } }
@media print { .tools, nav.pages { display: none; } .card { break-inside: avoid; } }
"""

# What is chosen stands behind the address's #, so that a link or a reload shows the same; photos keep their anchors.
SCRIPT = """
'use strict';
const list = document.querySelector('.cards');
const cards = Array.from(list.children);
const tool = name => document.getElementById(name);
const words = new Map(cards.map(card => [card, card.textContent.toLowerCase()]));
const number = (card, name) => card.dataset[name] === undefined ? NaN : Number(card.dataset[name]);
let down = false;

function before(a, b) {
  const by = tool('sort').value;
  const first = number(a, 'place') - number(b, 'place');
  if (by === 'name') return down ? -first : first;
  const x = number(a, by), y = number(b, by);
  if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || first;
  return (down ? y - x : x - y) || first;
}

function show() {
  const text = tool('find').value.trim().toLowerCase();
  const status = tool('status').value, warned = tool('warned').checked;
  let count = 0;
  for (const card of cards) {
    const fits = (!status || card.dataset.status === status) && (!warned || number(card, 'warnings') > 0)
      && (!text || words.get(card).includes(text));
    card.hidden = !fits;
    count += fits;
  }
  list.append(...cards.slice().sort(before));
  tool('shown').textContent = count + ' of ' + cards.length + ' shown';
  tool('order').textContent = down ? '\\u2193' : '\\u2191';
  tool('order').setAttribute('aria-label', down ? 'largest first' : 'smallest first');
}

function remember() {
  const state = new URLSearchParams();
  if (tool('find').value) state.set('find', tool('find').value);
  if (tool('status').value) state.set('status', tool('status').value);
  if (tool('warned').checked) state.set('warned', '1');
  if (tool('sort').value !== 'name' || down) state.set('sort', tool('sort').value + (down ? '-' : ''));
  history.replaceState(null, '', state.toString() ? '#' + state : location.pathname + location.search);
  show();
}

function recall() {
  if (location.hash && !location.hash.includes('=')) return show();
  const state = new URLSearchParams(location.hash.slice(1));
  tool('find').value = state.get('find') || '';
  tool('status').value = ['done', 'skipped', 'failed'].find(name => name === state.get('status')) || '';
  tool('warned').checked = state.get('warned') === '1';
  const sort = state.get('sort') || 'name';
  down = sort.endsWith('-');
  tool('sort').value = ['seconds', 'score', 'warnings'].find(name => sort.startsWith(name)) || 'name';
  show();
}

tool('find').addEventListener('input', remember);
for (const name of ['status', 'warned', 'sort']) tool(name).addEventListener('change', remember);
tool('order').addEventListener('click', () => { down = !down; remember(); });
window.addEventListener('hashchange', recall);
document.querySelector('.tools').hidden = false;
recall();
"""
