# SPDX-License-Identifier: Apache-2.0
"""What winnow-swin measured (bench/results/swin_h200.json) beside SparseViT, in words and a table."""
from page_text import milliseconds, percent, table


def swin_results(report, peers):
    """The configurations of the backbone beside SparseViT's, and which targets they meet."""
    targets, published = peers["swin_targets"], peers["swin_published"]
    theirs = {(row["name"], row["configuration"]): row for row in peers["swin"]}
    rows, missed, most_choosing = [], [], 0.0
    for row in report["configurations"]:
        name = row["name"]
        is_dense = all(ratio == 0 for stage in row["ratios"] for ratio in stage)
        share = 0.0 if is_dense else row["choosing_ms"] / row["gpu_ms"]
        most_choosing = max(most_choosing, share)
        speed = targets["speedup_wall"].get(name)
        if speed and row["speedup_wall"] < speed:
            missed.append(f"{name} {row['speedup_wall']:.2f}× of {speed:.2f}×")
        if is_dense and row["wall_ms"] > targets["dense_wall_ms"]:
            missed.append(f"{name} {milliseconds(row['wall_ms'])} ms of {targets['dense_wall_ms']} ms")
        peer = theirs.get(("SparseViT FP16", name), {})
        cited, dense_cited = published["ms"].get(name), published["ms"]["dense"]
        rows.append([
            f"`{name}`", " \\| ".join(" ".join(f"{ratio:g}" for ratio in stage)
                                     for stage in row["ratios"]),
            milliseconds(row["wall_ms"]), milliseconds(row["gpu_ms"]),
            f"{row['speedup_wall']:.2f}" + (f" (target {speed:.2f})" if speed else ""),
            "" if is_dense else f"{row['choosing_ms'] * 1e3:.1f} ({percent(share, 1)})",
            " ".join(milliseconds(stage) for stage in row["stages_ms"]),
            " / ".join(milliseconds(peer[key]) for key in ("wall_ms", "gpu_ms") if key in peer),
            f"{cited:.1f} ({dense_cited / cited:.2f})" if cited else ""])
    if most_choosing > targets["choosing_share"]:
        missed.append(f"choosing {percent(most_choosing, 1)} of {percent(targets['choosing_share'])}")
    dense = report["configurations"][0]
    others = [f"{name} {milliseconds(row['gpu_ms'])} ms {'dense' if of == 'dense' else 'pruned by 60 %'}"
              for (name, of), row in theirs.items() if "wall_ms" not in row]
    return [
        f"{report['setup']}; commit {report['commit']}. {report['protocol']['warm_up']} forwards to warm "
        f"up, {report['protocol']['repeats']} measured, mean of the {report['protocol']['mean_of']}; each "
        "forward is the launch of one CUDA graph. *Wall* is the host's clock, *faster* its ratio to "
        "dense, *choosing* the GPU time that ranking windows takes. Repeat it with `winnow-swin latency`.",
        table(["configuration", "ratios of the blocks", "wall ms", "GPU ms", "faster than dense, ×",
               "choosing, µs", "stages 1 to 4, GPU ms", "SparseViT FP16, wall / GPU ms",
               f"{published['name']}, ms (×)"], rows),
        f"Others on the same work, GPU time: {', '.join(others)}.",
        f"Targets: {targets['dense_wall_ms']} ms dense ({milliseconds(dense['wall_ms'])}), the ratios "
        f"above, {percent(targets['choosing_share'])} for choosing (most: {percent(most_choosing, 1)}): "
        + (f"missed are {'; '.join(missed)}." if missed else "all are met.")]


def swin_sentence(report, peers):
    ours = {row["name"]: row for row in report["configurations"]}
    theirs = {row["configuration"]: row for row in peers["swin"] if "wall_ms" in row}
    walls = [milliseconds(rows[name]["wall_ms"]) for rows in (ours, theirs)
             for name in ("dense", "uniform60")]
    return (f"A Swin-T backbone on it (half, four images of 672 x 672, wall time) takes {walls[0]} ms dense and "
            f"{walls[1]} ms with 60 % of the windows pruned, {ours['uniform60']['speedup_wall']:.2f} times "
            f"faster; SparseViT's code takes {walls[2]} and {walls[3]} ms ([docs/swin.md](docs/swin.md)).")
