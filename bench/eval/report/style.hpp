// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace winnow::eval::report {

/// The page's style sheet: one column on a phone, two on a desk, light or dark as the reader's system
/// asks. Blue is winnow and orange what it is compared with, apart for colour-blind readers.
inline constexpr const char* style = R"css(
:root {
  color-scheme: light dark;
  --back: #fbfbf9; --card: #ffffff; --text: #1c2024; --faint: #5a626b; --line: #dcdfe2;
  --one: #0a6cb0; --two: #d9822b; --track: #eceeef; --over: #b3261e; --dot: #0a6cb0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #121518; --card: #1a1e22; --text: #e7e9eb; --faint: #a2abb4; --line: #343a41;
    --one: #5fb3ea; --two: #eda04f; --track: #2a3036; --over: #ff8a80; --dot: #5fb3ea;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
}
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: clamp(1.6rem, 5vw, 2.3rem); line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.02em; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 3rem 0 .3rem; letter-spacing: -.01em; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .3rem; }
p { max-width: 44rem; margin: .4rem 0 .9rem; }
.lead { font-size: 1.1rem; color: var(--faint); overflow-wrap: anywhere; }
.how { font-size: .9rem; color: var(--faint); }
a { color: var(--one); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 1rem 0 0; font-size: .95rem; }
.tiles, .pair { display: grid; gap: 1rem; margin: 1rem 0; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(min(100%, 14rem), 1fr)); }
.pair { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); align-items: start; }
.tile, figure, .scroll {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; min-width: 0;
}
.tile { padding: .9rem 1rem; }
.tile b { display: block; font-size: 1.55rem; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { color: var(--faint); font-size: .92rem; }
figure { margin: 0; padding: .9rem; }
figcaption { font-size: .92rem; color: var(--faint); margin-top: .5rem; }
figcaption b, caption { color: var(--text); }
svg { display: block; width: 100%; height: auto; font: 12.5px system-ui, "DejaVu Sans", sans-serif; }
svg text { fill: var(--faint); }
.chart text { paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
svg.scan { font-size: 26px; }
.scan text { fill: var(--text); paint-order: stroke; stroke: var(--card); stroke-width: 6px; }
.scale-back { fill: var(--card); fill-opacity: .85; }
.scale, .frame { fill: none; stroke: var(--text); stroke-width: 3; }
.edge, .grid { fill: none; stroke: var(--line); stroke-width: 1; }
.edge { stroke: var(--faint); stroke-opacity: .55; }
.mark { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 3 3; }
.one { fill: var(--one); }
.two { fill: var(--two); }
.key { fill: var(--dot); fill-opacity: .62; stroke: var(--dot); stroke-width: .8; }
.query, .query-back { fill: none; stroke: var(--two); stroke-width: 3; }
.query-back { stroke: var(--card); stroke-width: 6; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .92rem; color: var(--faint); margin: .2rem 0 .8rem; padding: 0; list-style: none; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .45em; background: var(--one); }
.legend .two i { background: var(--two); }
.legend .two { fill: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .8rem .9rem .3rem; }
th, td { padding: .38rem .9rem; text-align: right; vertical-align: top; }
th { font-weight: 500; }
th[scope=row], th[scope=rowgroup], thead th:first-child { text-align: left; }
thead th { color: var(--faint); font-size: .88rem; border-bottom: 1px solid var(--line); vertical-align: bottom; }
tbody th.group { padding-top: .9rem; font-weight: 650; }
tbody tr + tr { border-top: 1px solid var(--line); }
tbody tr th.group + td, tbody tr:first-child { border-top: 0; }
td { white-space: nowrap; }
.pair td, .facts td { white-space: normal; }
td small { display: block; color: var(--faint); font-size: .82rem; white-space: nowrap; }
td.over, td.over small { color: var(--over); font-weight: 600; }
.pair table { table-layout: fixed; }
.bar { display: block; height: 6px; margin: .25rem 0 .1rem; border-radius: 3px; background: var(--track); overflow: hidden; }
.bar i { display: block; height: 100%; min-width: 1px; background: var(--one); border-radius: 3px; }
.bar.other i { background: var(--two); }
.over .bar i { background: var(--over); }
.facts thead { display: none; }
.facts th { width: 13rem; }
.facts td { text-align: left; overflow-wrap: anywhere; }
pre { margin: .5rem 0 1rem; padding: .9rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: auto; font: .85rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
details pre { max-height: 30rem; }
summary { cursor: pointer; }
footer { margin-top: 3rem; color: var(--faint); font-size: .9rem; }
:focus-visible { outline: 2px solid var(--one); outline-offset: 2px; }
@media (max-width: 30rem) {
  th, td { padding-left: .4rem; padding-right: .4rem; }
  table { font-size: .9rem; }
  thead th { font-size: .8rem; }
  .pair thead th:first-child:nth-last-child(4) { width: 17%; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .6rem; }
  .tile { padding: .7rem .75rem; }
  .tile b { font-size: 1.2rem; }
  caption { padding-left: .4rem; padding-right: .4rem; }
  .facts th { width: 38%; }
  figure { padding: .6rem; }
}
@media print {
  .tile, figure, .scroll { break-inside: avoid; }
  details { display: none; }
}
)css";

}  // namespace winnow::eval::report
