// Style and script of the HTML report. Everything is in the page: nothing is loaded from anywhere.
#pragma once

namespace peft::cli {

// Nine steps of one hue, from "hardly changed" to "changed most"; the same order of contrast in the light and in the
// dark.
inline constexpr const char* kReportStyle = R"css(
:root { color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1f24; --soft: #59636e; --line: #d8dee4; --panel: #f6f8fa; --accent: #0b5cad; --none: #eceff2; --warn: #9a6700;
  --c0: #eaf2fb; --c1: #d3e4f5; --c2: #b5d1ee; --c3: #8fbae3; --c4: #659fd5; --c5: #3f83c4; --c6: #2468ac; --c7: #134e8c; --c8: #08366a; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #0f1318; --ink: #e6eaef; --soft: #9aa5b1; --line: #2c343d; --panel: #171c22; --accent: #7ab8f5; --none: #1d232a; --warn: #e3b341;
  --c0: #14263a; --c1: #17324f; --c2: #1b4067; --c3: #215182; --c4: #2b669f; --c5: #3d7fbb; --c6: #5b9bd5; --c7: #86b9e8; --c8: #bcdcfa; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 28px 80px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 6px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 46px 0 8px; letter-spacing: -.005em; }
p { margin: 6px 0 12px; max-width: 76ch; }
.soft { color: var(--soft); }
code, .mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .9em; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 12px; margin: 26px 0 10px; padding: 0; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.tile b { display: block; font-size: 23px; line-height: 1.25; font-variant-numeric: tabular-nums; letter-spacing: -.01em; }
.tile span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; padding: 14px; background: var(--panel); }
svg text { fill: var(--soft); font: 10px ui-monospace, Menlo, Consolas, monospace; }
svg rect { stroke: var(--panel); stroke-width: 1; }
.n { fill: var(--none); background: var(--none); }
)css"
                                            R"css(
.c0 { fill: var(--c0); background: var(--c0); } .c1 { fill: var(--c1); background: var(--c1); } .c2 { fill: var(--c2); background: var(--c2); }
.c3 { fill: var(--c3); background: var(--c3); } .c4 { fill: var(--c4); background: var(--c4); } .c5 { fill: var(--c5); background: var(--c5); }
.c6 { fill: var(--c6); background: var(--c6); } .c7 { fill: var(--c7); background: var(--c7); } .c8 { fill: var(--c8); background: var(--c8); }
.c5, .c6, .c7, .c8 { color: #fff; }
@media (prefers-color-scheme: dark) { .c5 { color: #fff; } .c6, .c7, .c8 { color: #0f1318; } }
.legend { display: flex; align-items: center; gap: 8px; margin: 10px 0 0; font-size: 13px; color: var(--soft); flex-wrap: wrap; }
.legend i { display: inline-block; width: 24px; height: 12px; }
.legend .steps { display: inline-flex; border-radius: 3px; overflow: hidden; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 13.5px; }
th, td { text-align: left; padding: 6px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; }
td.r, th.r { text-align: right; white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
table.grid { width: auto; border-collapse: separate; border-spacing: 2px; font-size: 12px; }
table.grid td, table.grid th { border: 0; padding: 4px 9px; text-align: right; border-radius: 3px; white-space: nowrap; }
table.grid th { font-weight: 500; font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 11px; }
table.facts th { width: 190px; }
table.facts td { overflow-wrap: anywhere; }
.bar { display: inline-block; height: 9px; border-radius: 2px; background: var(--accent); vertical-align: middle; margin-left: 8px; }
.track { display: inline-block; width: 90px; text-align: left; }
.js #table th[data-sort] { cursor: pointer; user-select: none; }
.js #table th[data-sort]:hover { color: var(--ink); }
#table th[aria-sort=ascending]::after { content: " \2191"; } #table th[aria-sort=descending]::after { content: " \2193"; }
#filter { display: none; width: 320px; max-width: 100%; margin: 4px 0 10px; padding: 7px 11px; font: inherit; color: var(--ink); background: var(--panel);
  border: 1px solid var(--line); border-radius: 8px; }
.js #filter { display: block; }
.warn { border-left: 3px solid var(--warn); padding: 6px 14px; margin: 10px 0; background: var(--panel); border-radius: 0 8px 8px 0; overflow-wrap: anywhere; }
footer { margin-top: 56px; color: var(--soft); font-size: 13px; border-top: 1px solid var(--line); padding-top: 14px; }
@media print { .scroll { overflow: visible; } body { font-size: 12px; } main { max-width: none; padding: 0; } }
)css";

// Sorting by a click on a heading, and a filter by name. Without it the table is there all the same.
inline constexpr const char* kReportScript = R"js(
document.documentElement.classList.add('js');
const table = document.getElementById('table');
if (table) {
  const body = table.tBodies[0];
  const value = (row, i) => { const c = row.cells[i]; return c.dataset.v !== undefined ? Number(c.dataset.v) : c.textContent; };
  table.querySelectorAll('th[data-sort]').forEach((head) => head.addEventListener('click', () => {
    const i = head.cellIndex, down = head.getAttribute('aria-sort') !== 'descending';
    table.querySelectorAll('th').forEach((other) => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const order = (a, b) => typeof a === 'number' ? a - b : a.localeCompare(b, undefined, { numeric: true });
    [...body.rows].sort((a, b) => order(value(a, i), value(b, i)) * (down ? -1 : 1)).forEach((row) => body.append(row));
  }));
  document.getElementById('filter').addEventListener('input', (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  });
}
)js";

}  // namespace peft::cli
