# SPDX-License-Identifier: Apache-2.0
"""Writes docs/performance.md, its pictures, README.md's table and the results of docs/swin.md from the
committed measurements in bench/results/.

    write_performance.py [--check] [ROOT]

--check writes nothing and fails where a file differs from what would be written, so that no number on
the page can drift from its measurement. Rows that a results file lacks are left out.
"""
import argparse
import json
import pathlib
import re
import sys

import charts
from page_text import milliseconds, ratio, table, wrapped
from swin_results import swin_results, swin_sentence

HEAD_DIMS = (16, 32, 64, 128)
# What stands between two marks of a page is written by this script.
MEASURED = re.compile(r"(<!-- measured.*?-->\n)(.*?)(<!-- end of measured -->)", re.DOTALL)


class Suite:
    """A Google Benchmark report; rows by name without the trailing run options."""

    def __init__(self, path):
        report = json.loads(path.read_text()) if path.is_file() else {"context": {}, "benchmarks": []}
        self.file, self.context = path.name, report["context"]
        self.rows = {}
        for row in report["benchmarks"]:
            if row.get("run_type", "iteration") == "iteration" and not row.get("error_occurred"):
                self.rows[re.sub(r"/(iterations:\d+|manual_time|repeats:\d+)", "", row["name"])] = row

    def __bool__(self):
        return bool(self.rows)

    def ms(self, name):
        row = self.rows.get(name)
        factor = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
        return None if row is None else row["real_time"] * factor[row["time_unit"]]

    def floor(self, name):
        row = self.rows.get(name)
        return None if row is None or "floor_us" not in row else row["floor_us"] * 1e-3

    def counter(self, name, key):
        return self.rows.get(name, {}).get(key)

    def total(self, names, get):
        values = [get(name) for name in names]
        return None if None in values else sum(values)

    def bandwidth(self):
        for key in ("copy_bandwidth_gb_s", "copy_bandwidth_GB_s"):
            if key in self.context:
                return float(self.context[key]) * 1e-3
        return None

    def provenance(self):
        parts = [f"`{self.file}`", self.context.get("gpu", ""), self.context.get("date", "")[:10]]
        driver = self.context.get("cuda_driver")
        parts.append(f"driver CUDA {int(driver) // 1000}.{int(driver) % 1000 // 10}" if driver else "")
        parts.append(f"commit {self.context['commit']}" if self.context.get("commit") else "")
        scans = {"files": "recorded", "simulated": "simulated"}.get(self.context.get("scans"))
        parts.append(f"{scans} scans" if scans else "")
        return ", ".join(part for part in parts if part)


class Comparison:
    """One piece of work beside its floor, its target and its peers."""

    def __init__(self, entry, suite, names):
        self.title, self.suite = entry["title"], entry["suite"]
        self.first_row = entry["rows"][0]
        self.ms = suite.total(entry["rows"], suite.ms)
        self.floor = suite.total(entry["rows"], suite.floor)
        cold = [row.replace("/warm", "/cold") for row in entry["rows"]]
        self.cold = suite.total(cold, suite.ms) if cold != entry["rows"] else None
        self.workspace = suite.counter(entry["rows"][0], "workspace_bytes")
        self.target = entry.get("target_ms")
        self.peers = [(names[p["name"]]["name"], p.get("ms"), p.get("fails")) for p in entry["peers"]]

    def of_floor(self):
        return self.ms / self.floor if self.floor else None

    def peer_words(self):
        return ", ".join(
            f"{name} {milliseconds(ms)} ({ratio(ms / self.ms)}×)" if ms else f"{name}: {why}"
            for name, ms, why in self.peers)

    def faster_peers(self):
        return [(name, ms) for name, ms, _ in self.peers if ms and ms < self.ms]


class Page:
    def __init__(self, root):
        self.results = root / "bench" / "results"
        self.files = {}  # path below ROOT -> text
        self.parts = []
        self.slower = []  # (work, our ms, peer, its ms)
        names = ("partition", "selection", "attention_forward", "attention_backward")
        self.suites = {name: Suite(self.results / f"{name}_h200.json") for name in names}
        self.peers = json.loads((self.results / "peers.json").read_text())
        self.sources = self.peers["names"]
        self.works = [Comparison(work, self.suites[work["suite"]], self.sources)
                      for work in self.peers["works"]]
        self.works = [work for work in self.works if work.ms]
        for work in self.works:
            for name, ms in work.faster_peers():
                self.slower.append((self.long_title(work), work.ms, name, ms))

    def title_of(self, case):
        """The words for a benchmark's case, where a work of peers.json has some."""
        titles = [work.title for work in self.works if work.first_row.startswith(case + "/")
                  and "storage" not in work.title]
        swin = re.fullmatch(r"swin_stage(\d)(_shifted)?", case)
        if swin:
            return f"Swin stage {swin[1]}, bias{', shifted' if swin[2] else ''}"
        return re.sub(", forward and backward$", "", titles[0]) if titles else f"`{case}`"

    @staticmethod
    def long_title(work):
        if work.title.endswith("forward and backward"):
            return work.title
        return {"attention_forward": "forward: ", "attention_backward": "backward: "}.get(
            work.suite, "") + work.title

    def add(self, *paragraphs):
        for paragraph in filter(None, paragraphs):
            prose = paragraph[0] not in "|*#!<" or re.match(r"\*\w+\*", paragraph)
            self.parts.append(wrapped(paragraph, 110) if prose else paragraph.rstrip("\n"))

    def optional(self, name):
        path = self.results / name
        return json.loads(path.read_text()) if path.is_file() else None

    def picture(self, name, alt, svg):
        self.files[f"docs/pictures/{name}"] = svg
        self.add(f"![{alt}](pictures/{name})")

    # Sections ---------------------------------------------------------------------------------

    def comparison_table(self, suite):
        works = [work for work in self.works if work.suite == suite]
        with_workspace = any(work.workspace for work in works)
        head = ["work", "ms", "cold ms", "floor ms", "ms / floor", "target ms", "others, ms (times ours)"]
        rows = []
        for work in works:
            target = "" if work.target is None else milliseconds(work.target) + (
                " met" if work.ms <= work.target else f", missed by {work.ms / work.target:.2f}×")
            row = [work.title, milliseconds(work.ms), milliseconds(work.cold), milliseconds(work.floor),
                   ratio(work.of_floor()), target, work.peer_words()]
            if with_workspace:
                row.append(f"{work.workspace / 1e6:.1f}" if work.workspace else "")
            rows.append(row)
        return table(head + (["workspace MB"] if with_workspace else []), rows)

    def partition(self):
        suite = self.suites["partition"]
        if not suite:
            return
        self.add("## Partition",
                 "Points of LiDAR scans, positions included, origin found on the device. *Bounded* calls "
                 "are told the box of the points and the number of batch items, *free* ones nothing. "
                 "*Graph*: a graph of 20 calls divided by 20. *Stream*: 20 calls submitted one after "
                 "another. *Cold*: a graph of one call after 256 MB of other data went through the L2. "
                 "*Both*: cubic and spherical windows in one `build_partitions` call.")
        works = [("W1 cubic", "partition/w1/cubic"), ("W1 spherical", "partition/w1/spherical"),
                 ("W1 both", "partition/w1/both")]
        works += [(f"stage {s} both", f"partition/stage{s}/both") for s in range(1, 6)]
        works += [("all ten, one after another", "partition/all_ten")]
        rows = []
        for title, name in works:
            bounded, free = f"{name}/bounded/graph", f"{name}/free/graph"
            if suite.ms(bounded) is None:
                continue
            workspace = [suite.counter(row, "workspace_mb") for row in (bounded, free)]
            rows.append([title, milliseconds(suite.ms(bounded)),
                         milliseconds(suite.ms(f"{name}/bounded/stream")),
                         milliseconds(suite.ms(f"{name}/bounded/cold")), milliseconds(suite.ms(free)),
                         milliseconds(suite.floor(bounded)),
                         ratio(suite.ms(bounded) / suite.floor(bounded)),
                         " / ".join(f"{w:.1f}" for w in workspace if w is not None)])
        self.add(table(["work", "bounded, graph", "stream", "cold", "free, graph", "floor",
                        "bounded / floor", "workspace MB, bounded / free"], rows))
        others = [work for work in self.works if work.suite == "partition" and work.peers]
        for work in others:
            self.add(f"Beside others, in ms: {work.title} {milliseconds(work.ms)}; {work.peer_words()}.")
        sorts = [(bits, suite.ms(f"library_sort/w1/{bits}_bits/graph")) for bits in (16, 24, 32)]
        sorts = [f"{milliseconds(ms)} on {bits} bits" for bits, ms in sorts if ms]
        if sorts:
            self.add("A library radix sort (CUB) of as many pairs as W1 has, alone, in the same run, ms: "
                     + ", ".join(sorts) + ".")

    def selection(self):
        suite = self.suites["selection"]
        if not suite:
            return
        self.add("## Selection",
                 "4 images of 168 × 168 tokens with 96 channels, windows of 7 × 7, 60 % pruned. The floor "
                 "is reading the features once.")
        names = dict.fromkeys(row.rsplit("/", 1)[0] for row in suite.rows)
        rows = []
        for name in names:
            warm, cold = suite.ms(f"{name}/graph"), suite.ms(f"{name}/cold")
            floor = suite.floor(f"{name}/cold")
            rows.append([name.replace("selection/", "").replace("_", " ").replace("/", ", "),
                         milliseconds(warm), milliseconds(cold), milliseconds(floor),
                         ratio(cold / floor) if cold and floor else ""])
        self.add(table(["work", "graph", "cold", "floor", "cold / floor"], rows))

    def attention(self, direction, traffic):
        suite = self.suites[f"attention_{direction}"]
        if not suite:
            return
        self.add(f"## Attention {direction}", traffic, self.comparison_table(f"attention_{direction}"))
        self.selected_windows(suite)
        pairs = [(row["pairs_per_second"], name) for name, row in suite.rows.items()
                 if "pairs_per_second" in row and "/half/" in name and "/both" not in name]
        if pairs:
            most, name = max(pairs)
            self.add(f"Most pairs of tokens and heads a second: {most / 1e12:.2f}·10¹², in "
                     f"`{name.split('/')[0]}`.")

    def selected_windows(self, suite):
        """Attention in a share of an image's windows, with Swin's bias."""
        shares = sorted({int(match[1]) for name in suite.rows
                         for match in [re.match(r"swin_stage1_shifted_kept_(\d+)/", name)] if match})
        rows = []
        for stage in range(1, 5) if shares else ():
            cells = []
            for share in shares + [100]:
                case = f"swin_stage{stage}_shifted" + ("" if share == 100 else f"_kept_{share}")
                ms, floor = suite.ms(f"{case}/half/warm"), suite.floor(f"{case}/half/warm")
                cells.append(f"{milliseconds(ms)} ({ratio(ms / floor)})" if ms else "")
            rows.append([f"stage {stage}"] + cells)
        if rows:
            self.add("Selected windows only, on Swin's maps at 672 x 672, batch 4, shifted, with bias, ms (and "
                     "ms over the floor, which counts the rows of kept windows):",
                     table(["windows kept"] + [f"{share} %" for share in shares + [100]], rows))

    def curve(self, suite, pattern, get=None):
        """[(x, y)] of the rows whose name matches, x the pattern's group."""
        points = []
        for name in suite.rows:
            match = re.fullmatch(pattern, name)
            value = (get or suite.ms)(name) if match else None
            if value:
                points.append((float(match[1]), value))
        return sorted(points)

    def curves(self):
        forward, backward = (self.suites[f"attention_{d}"] for d in ("forward", "backward"))
        half = "/half/warm"
        tokens = []
        for title, suite in (("forward", forward), ("backward", backward)):
            tokens.append((title, self.curve(suite, rf"sweep_tokens_(\d+){half}"), False))
            tokens.append((f"{title}, floor",
                           self.curve(suite, rf"sweep_tokens_(\d+){half}", suite.floor), True))
        for kind in ("cubic", "spherical"):
            tokens.append((f"{kind} partition", self.curve(
                self.suites["partition"], rf"partition/ground/(\d+)/{kind}/bounded/graph"), False))
        tokens = [curve for curve in tokens if curve[1]]
        if not tokens:
            return
        self.add("## Time against work", "The same runs as above; half, inputs in the L2 where they fit.")
        self.picture("time_tokens.svg", "Time against the number of tokens", charts.line_chart(
            "Windows of 24 tokens, two heads of 16", "tokens", "ms", tokens))
        for title, suite in (("forward", forward), ("backward", backward)):
            lines = {dim: self.curve(suite, rf"sweep_window_(\d+)_dim_{dim}{half}") for dim in HEAD_DIMS}
            lines = {dim: line for dim, line in lines.items() if line}
            if not lines:
                continue
            sizes = sorted({x for line in lines.values() for x, _ in line})
            self.picture(f"time_window_{title}.svg", f"Time of {title} against the size of windows",
                         charts.line_chart(
                             f"{title.capitalize()}: 65,536 tokens, 128 channels in all", "window size",
                             "ms", [(f"head dim {dim}", line, False) for dim, line in lines.items()]
                             + [("floor", self.curve(suite, rf"sweep_window_(\d+)_dim_16{half}",
                                                     suite.floor), True)], sizes))
            by_dim = [(f"windows of {size:,.0f}", [(dim, dict(line)[size]) for dim, line in lines.items()
                                                if size in dict(line)], False)
                      for size in sizes if size in (16, 64, 256, 1024, 4096)]
            self.picture(f"time_dim_{title}.svg", f"Time of {title} against the head dim",
                         charts.line_chart(
                             f"{title.capitalize()}: 65,536 tokens, 128 channels in all", "head dim", "ms",
                             by_dim, HEAD_DIMS))
        rows = []
        for size, ms in self.curve(forward, rf"sweep_long_(\d+){half}"):
            name = f"sweep_long_{size:.0f}{half}"
            both = [(s.ms(name), s.counter(name, "pairs")) for s in (forward, backward)]
            rows.append([f"{size:,.0f}"] + [
                words for value, pairs in both
                for words in (milliseconds(value), f"{value * 1e9 / pairs:.2f}" if value and pairs else "")])
        if rows:
            self.add("Windows longer still, 200,000 tokens or the next multiple below, one head of 16:",
                     table(["window size", "forward ms", "ps a pair", "backward ms", "ps a pair"], rows))
        bars = [(self.long_title(work), work.of_floor(),
                 2 if work.title.endswith("forward and backward") else work.suite == "attention_backward")
                for work in self.works if work.suite != "partition" and work.of_floor()]
        if bars:
            self.picture("ratio_to_floor.svg", "Time over the memory floor", charts.bar_chart(
                "Time over the floor of memory traffic", "ms / floor ms", bars))

    def pytorch(self):
        report = self.optional("pytorch_h200.json")
        if not report:
            return
        context = report["context"]
        peers = list(dict.fromkeys(peer for row in report["rows"] for peer in row["peers"]))
        self.add("## Beside PyTorch, in one run",
                 f"`bench/compare_pytorch.py` on one {context['gpu']}, PyTorch {context['torch']}, FP16, GPU "
                 "ms of one call in a graph of several. PyTorch's calls get tokens that are sorted by window "
                 "already, and block masks and biases made beforehand; winnow reads the caller's order. "
                 "Backward is all gradients, that of the bias table included. In brackets: how many times "
                 "winnow's time.")
        rows, reasons = [], {}
        for row in report["rows"]:
            own = row.get("winnow_ms")
            cells = []
            for peer in peers:
                entry = row["peers"].get(peer, {"reason": "not measured"})
                ms = entry.get("ms")
                cells.append("" if ms is None else
                             f"{milliseconds(ms)} ({ratio(ms / own)}×)" if own else milliseconds(ms))
                if ms and own and ms < own:
                    self.slower.append((f"{row['direction']}: {self.title_of(row['case'])}", own,
                                        f"{peer} (PyTorch)", ms))
                if "reason" in entry:
                    reasons.setdefault((peer, entry["reason"]), []).append(
                        self.title_of(row["case"]))
            rows.append([f"{row['direction']}: {self.title_of(row['case'])}", milliseconds(own),
                         milliseconds(row.get("floor_ms"))] + cells)
        self.add(table(["work", "winnow", "floor"] + peers, rows))
        if reasons:
            self.add("Not served:", "\n".join(
                f"* {peer}: {'; '.join(dict.fromkeys(cases))}: {why}"
                for (peer, why), cases in reasons.items()))

    def swin(self):
        report = self.optional("swin_h200.json")
        if report:
            self.add("## Swin with pruning",
                     "A Swin-T backbone on winnow's attention, described in [swin.md](swin.md), from "
                     "`swin_h200.json`.", *swin_results(report, self.peers))

    def swin_page(self, root):
        """docs/swin.md with its results written anew."""
        text = (root / "docs" / "swin.md").read_text()
        report, start = self.optional("swin_h200.json"), len(self.parts)
        self.add(*(swin_results(report, self.peers) if report else []))
        body = "\n" + "\n\n".join(self.parts[start:]) + "\n\n"
        del self.parts[start:]
        self.files["docs/swin.md"] = MEASURED.sub(lambda marks: marks[1] + body + marks[3], text)

    def memory(self):
        report = self.optional("eval_w1_h200.json")
        if not report:
            return
        self.add("## Memory and precision",
                 f"`winnow-eval` on W1, {report['tokens']['evaluated']:,} tokens, "
                 f"{report['options']['heads']} heads of {report['options']['head_dim']}, half: memory "
                 "beyond inputs, outputs and the partition, beside what a list of the pairs would take; "
                 "largest error against float on the inputs before rounding.")
        rows = []
        for window in report["windows"]:
            for attention in window["attention"]:
                half = attention["runs"]["float16"]
                words = [f"{window['kind']}, {attention['position']}"]
                words += [f"{half[d]['extra_bytes'] / 1e6:.1f}" for d in ("forward", "backward")]
                words += [f"{half['pair_list_bytes'][d] / 1e6:.0f}" for d in ("forward", "backward")]
                words += [f"{attention['errors']['out'][t]['largest']:.1e}" for t in ("half", "bfloat16")]
                rows.append(words)
        self.add(table(["windows", "forward MB", "backward MB", "pair list, forward MB",
                        "pair list, backward MB", "largest error of out, half", "bfloat16"], rows))

    def head(self):
        used = [suite for suite in self.suites.values() if suite]
        bandwidths = [b for b in (suite.bandwidth() for suite in used) if b]
        self.add("# Performance",
                 "<!-- Written by bench/write_performance.py from bench/results/; change those. -->",
                 "Every number here comes from a file in `bench/results/` through "
                 "`bench/write_performance.py`, and a test keeps it so. GPU times in milliseconds, by "
                 "events; `bench/run_device.sh OUTPUT` measures them anew.",
                 "\n".join(f"* {suite.provenance()}" for suite in used))
        if bandwidths:
            spread = " to ".join(f"{b:.2f}" for b in sorted({min(bandwidths), max(bandwidths)}))
            self.add(f"The *floor* is the time that a copy kernel, measured in the same run ({spread} TB/s "
                     "read plus written), takes for the bytes that have to be read and written once. *Warm*, "
                     "unless said: a CUDA graph of up to 20 calls on the same arrays, divided by their "
                     "number. *Cold*: one call after 256 MB of other data went through the L2.")

    def summary(self):
        """Where others are faster, and which targets are missed: known when all else is written."""
        parts = ["## Where others are faster"]
        if self.slower:
            parts.append(table(["work", "winnow ms", "faster", "ms", "winnow / it"], [
                [work, milliseconds(own), name, milliseconds(ms), f"{own / ms:.2f}"]
                for work, own, name, ms in self.slower]).rstrip("\n"))
        else:
            parts.append("In none of the cases that were measured.")
        aimed = [work for work in self.works if work.target]
        met = [work for work in aimed if work.ms <= work.target]
        if aimed:
            parts.append(f"Targets met: {len(met)} of {len(aimed)}" + (
                " (" + "; ".join(self.long_title(work) for work in met) + ")." if met else "."))
        return parts

    def readme(self, root):
        """README.md with the lines between its two marks written anew."""
        text = (root / "README.md").read_text()
        match = MEASURED.search(text)
        if not match:
            return
        kinds = ("cubic", "spherical")
        partition = self.suites["partition"]
        rows = [["partition"] + [milliseconds(partition.ms(f"partition/w1/{kind}/bounded/graph"))
                                 for kind in kinds]
                + [", ".join(milliseconds(ms) for work in self.works if work.suite == "partition"
                             for _, ms, _ in work.peers if ms)]]
        for title in ("plain", "contextual"):
            for suite, way, suffix in (("attention_forward", "forward", ""),
                                       ("attention_backward", "forward and backward",
                                        ", forward and backward")):
                found = [work for kind in kinds for work in self.works
                         if work.suite == suite and work.title == f"W1 {kind}, {title}{suffix}"]
                if len(found) != 2:
                    continue
                # The faster of SpTr's two storage types.
                sptr = [min((ms, name) for name, ms, _ in work.peers if ms and "SpTr" in name)
                        for work in found]
                rows.append([f"{title}, {way}"] + [milliseconds(work.ms) for work in found] + [
                    " and ".join(milliseconds(ms) for ms, _ in sptr)
                    + (", in float" if all("FP32" in name for _, name in sptr) else "")])
        body = "\n" + table(["ms", "cubic windows of 0.3 m", "spherical windows of 2° × 2° × 80 m",
                             "SpTr, the same work"], rows) + "\n"
        swin = self.optional("swin_h200.json")
        if swin:
            body += wrapped(swin_sentence(swin, self.peers)) + "\n\n"
        slower = sorted({re.sub(r", N = [\d,]+, H = \d+", "", work) for work, _, _, _ in self.slower})
        sentence = ("[docs/performance.md](docs/performance.md) has all measurements, and says where others are "
                    "faster: " + ("; ".join(slower) if slower else "in none of the cases measured") + ". "
                    "[docs/kernels.md](docs/kernels.md) says where the time goes.")
        body += wrapped(sentence) + "\n\n"
        self.files["README.md"] = text[:match.start(2)] + body + text[match.end(2):]

    def write(self, root):
        self.head()
        place = len(self.parts)
        self.partition()
        self.selection()
        self.attention("forward", "Half unless said; no LSE. The floor is reading q, k, v and writing out "
                       "once. The call uses no memory beyond its arguments.")
        self.attention("backward", "Half unless said; all gradients, those of tables included, in float "
                       "sums. The floor is q, k, v, out, dO, dq, dk and dv once, and in rows of forward and "
                       "backward those of forward besides.")
        self.pytorch()
        self.curves()
        self.swin()
        self.memory()
        self.add("## Sources", "\n".join(f"* {peer['name']}: {peer['source']}."
                                         for peer in self.sources.values()))
        self.parts[place:place] = self.summary()
        self.files["docs/performance.md"] = "\n\n".join(self.parts) + "\n"
        self.readme(root)
        self.swin_page(root)
        return self.files


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("root", nargs="?", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parent.parent)
    arguments = parser.parse_args()
    stale = []
    for name, text in Page(arguments.root).write(arguments.root).items():
        path = arguments.root / name
        if not path.is_file() or path.read_text() != text:
            stale.append(name)
            if not arguments.check:
                path.write_text(text)
    if arguments.check and stale:
        sys.exit(f"differ from bench/results/, run bench/write_performance.py: {', '.join(stale)}")
    print("\n".join(stale) if stale else "all up to date")


if __name__ == "__main__":
    main()
