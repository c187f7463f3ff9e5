# SPDX-License-Identifier: Apache-2.0
"""Attention in the same windows by winnow and by what PyTorch offers, in one run on one GPU.

    compare_pytorch.py --winnow-bench attention_forward_bench --winnow-bench attention_backward_bench
                       [--workloads FOLDER] [--cases REGEX] [--out FILE.json]

FOLDER holds stage1_coords.npy and stage1_batch.npy (winnow_write_scans makes simulated ones); without
it, or WINNOW_WORKLOADS, the LiDAR cases are left out. Storage is FP16. Every time is GPU time of one
call in a CUDA graph of several, inputs in the L2 where they fit.

PyTorch's calls get what suits them best, free of charge: tokens sorted by window, heads before tokens,
block masks and biases made beforehand. winnow reads the caller's order through its partition. Backward
means all gradients: q, k, v and, where there is one, the bias table.

What a call cannot serve is listed with the reason it gives. Results of the peers are compared with each
other; one that differs counts as failed.
"""
import argparse
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F

BLOCK = 128  # FlexAttention's sparse blocks
SWIN_WINDOW = 7


class Unserved(Exception):
    """A call that does not serve this case, with the reason."""


class Case:
    """Windows of tokens that are sorted by window: window w is [offsets[w], offsets[w + 1])."""

    def __init__(self, name, offsets, heads, dim, shift=None, edge=None):
        self.name, self.heads, self.dim = name, heads, dim
        self.offsets = np.asarray(offsets, np.int64)
        self.tokens = int(self.offsets[-1])
        self.sizes = np.diff(self.offsets)
        self.shift, self.edge = shift, edge  # of a Swin stage
        self.expected = None  # the first peer's result
        random = torch.Generator("cuda").manual_seed(0)

        def rows():
            values = torch.randn(heads, self.tokens, dim, generator=random, device="cuda")
            return values.half()

        self.q, self.k, self.v, self.grad_out = rows(), rows(), rows(), rows()
        if self.bias:
            rows_of_table = (2 * SWIN_WINDOW - 1) ** 2
            self.table = torch.randn(rows_of_table, heads, generator=random, device="cuda").half()

    @property
    def bias(self):
        return self.shift is not None

    def uniform_size(self):
        if (self.sizes != self.sizes[0]).any():
            raise Unserved("windows differ in size")
        return int(self.sizes[0])

    def bias_index(self):
        """[49, 49] rows of the bias table."""
        y, x = np.divmod(np.arange(SWIN_WINDOW**2), SWIN_WINDOW)
        row = (y[:, None] - y[None] + SWIN_WINDOW - 1) * (2 * SWIN_WINDOW - 1)
        return torch.from_numpy(row + x[:, None] - x[None] + SWIN_WINDOW - 1).cuda()

    def regions(self):
        """[windows of an image, 49] which side of the seam a token lies on."""
        side = np.zeros(self.edge, np.int64)
        if self.shift:
            side[self.edge - self.shift:] = 1
        region = 2 * side[:, None] + side[None]
        count = self.edge // SWIN_WINDOW
        return region.reshape(count, SWIN_WINDOW, count, SWIN_WINDOW).transpose(0, 2, 1, 3).reshape(
            count * count, SWIN_WINDOW**2)


def window_offsets(coordinates, batch, size):
    """Offsets of winnow's windows over points: cells of `size` from the least coordinates on."""
    cells = np.floor((coordinates - coordinates.min(0)) / np.asarray(size, np.float32))
    keys = np.stack([cells[:, 0], cells[:, 1], cells[:, 2], batch]).astype(np.int64)
    keys = np.ravel_multi_index(keys[::-1], keys[::-1].max(1) + 1)
    counts = np.unique(keys, return_counts=True)[1]
    return np.concatenate([[0], np.cumsum(counts)])


def make_cases(folder, wanted):
    makers = {}
    if folder:
        coordinates = np.load(pathlib.Path(folder) / "stage1_coords.npy")[:268720]
        batch = np.load(pathlib.Path(folder) / "stage1_batch.npy")[:268720]
        x, y, z = coordinates.T
        spherical = np.stack([np.degrees(np.arctan2(y, x)) + 180, np.degrees(np.arctan2(
            np.hypot(x, y), z)), np.linalg.norm(coordinates, axis=1)], 1).astype(np.float32)
        makers["W1_cubic_plain"] = lambda name: Case(
            name, window_offsets(coordinates, batch, [0.3] * 3), 2, 16)
        makers["W1_spherical_plain"] = lambda name: Case(
            name, window_offsets(spherical, batch, [2, 2, 80]), 2, 16)
    for tokens, size, heads, dim in [(262128, 48, 8, 16), (262144, 256, 8, 32),
                                     (131072, 1024, 8, 16), (131072, 1024, 8, 64)]:
        makers[f"windows_of_{size}_dim_{dim}"] = (
            lambda name, t=tokens, s=size, h=heads, d=dim: Case(
                name, np.arange(0, t + 1, s), h, d))
    for stage in (1, 3):
        for shift in (0, 3):
            edge, heads = 168 >> stage - 1, 3 << stage - 1
            makers[f"swin_stage{stage}" + ("_shifted" if shift else "")] = (
                lambda name, e=edge, h=heads, s=shift: Case(
                    name, np.arange(0, 4 * e * e + 1, SWIN_WINDOW**2), h, 32, s, e))
    return {name: make for name, make in makers.items() if re.search(wanted, name)}


# Each peer is a function from a case to (forward, backward, rows): two calls without arguments, and
# what makes [heads, tokens, dim] of forward's result.


def flash_varlen(case):
    """FlashAttention over ragged sequences, as PyTorch ships it."""
    if case.bias:
        raise Unserved("takes no bias")
    q, k, v, grad_out = (x.transpose(0, 1).contiguous()
                         for x in (case.q, case.k, case.v, case.grad_out))
    offsets = torch.from_numpy(case.offsets).int().cuda()
    longest = int(case.sizes.max())

    def forward():
        return torch.ops.aten._flash_attention_forward(
            q, k, v, offsets, offsets, longest, longest, 0.0, False, False)

    try:
        out, lse, seed, offset, _ = forward()
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise Unserved(f"{len(case.sizes):,} windows: {str(error).splitlines()[0]}") from None

    def backward():
        return torch.ops.aten._flash_attention_backward(
            grad_out, q, k, v, out, lse, offsets, offsets, longest, longest, 0.0, False, seed, offset)

    return forward, backward, lambda result: result[0].transpose(0, 1)


def sdpa(case):
    """scaled_dot_product_attention on a batch of windows, with the bias as its mask."""
    size = case.uniform_size()

    def windows(x):
        x = x.reshape(case.heads, -1, size, case.dim).transpose(0, 1).contiguous()
        return x.requires_grad_()

    q, k, v = windows(case.q), windows(case.k), windows(case.v)
    grad_out = windows(case.grad_out).detach()
    leaves, bias_of = [q, k, v], lambda: None
    if case.bias:
        table = case.table.clone().requires_grad_()
        leaves.append(table)
        index = case.bias_index()
        region = torch.from_numpy(case.regions()).cuda()
        seam = torch.where(region[:, :, None] == region[:, None], 0.0, -math.inf).half()
        seam = seam.repeat(len(case.sizes) // len(region), 1, 1)[:, None]

        def bias_of():
            # Rows that begin at aligned addresses, as the fast kernels want them.
            bias = table[index].permute(2, 0, 1)[None]
            bias = bias + seam if case.shift else bias
            bias = F.pad(bias, (0, -size % 8))[..., :size]
            return bias.expand(len(case.sizes), -1, -1, -1)

    made = bias_of()
    fixed = None if made is None else made.detach()

    def forward():
        with torch.no_grad():
            return F.scaled_dot_product_attention(q, k, v, attn_mask=fixed)

    out = F.scaled_dot_product_attention(q, k, v, attn_mask=made)

    def backward():
        return torch.autograd.grad(out, leaves, grad_out, retain_graph=True)

    return forward, backward, lambda result: result.transpose(0, 1).reshape(case.q.shape)


def flex_attention(case):
    """FlexAttention, compiled for this case, with a block mask of the windows."""
    from torch.nn.attention import flex_attention as flex
    window_of = torch.from_numpy(np.repeat(np.arange(len(case.sizes)), case.sizes)).int().cuda()
    blocks = -(-case.tokens // BLOCK)
    window = window_of.cpu().numpy()
    ends = np.minimum((np.arange(blocks) + 1) * BLOCK, case.tokens) - 1
    first = case.offsets[window[np.arange(blocks) * BLOCK]] // BLOCK
    last = (case.offsets[window[ends] + 1] - 1) // BLOCK
    # Blocks inside one window, whose tiles inside it need no mask.
    whole = window[np.arange(blocks) * BLOCK] == window[ends]
    whole &= (np.arange(blocks) + 1) * BLOCK <= case.tokens
    partial, full = [], []
    for block in range(blocks):
        tiles = np.arange(first[block], last[block] + 1)
        inside = whole[block] & whole[tiles] & (not case.shift)
        partial.append(tiles[~inside])
        full.append(tiles[inside])

    def lists(tiles):
        counts = torch.tensor([len(t) for t in tiles], dtype=torch.int32, device="cuda")
        indices = np.zeros((blocks, blocks), np.int32)
        for row, t in zip(indices, tiles):
            row[:len(t)] = t
        return counts[None, None], torch.from_numpy(indices).cuda()[None, None]

    score = None
    if case.bias:
        table = case.table.clone().requires_grad_()
        index = case.bias_index().int()
        region = torch.from_numpy(np.tile(case.regions().ravel(), case.tokens // case.edge**2))
        region = region.int().cuda()
        size = SWIN_WINDOW**2
        score = lambda s, b, h, i, j: s + table[index[i % size, j % size], h]
        mask = lambda b, h, i, j: (window_of[i] == window_of[j]) & (region[i] == region[j])
    else:
        mask = lambda b, h, i, j: window_of[i] == window_of[j]
    block_mask = flex.BlockMask.from_kv_blocks(*lists(partial), *lists(full), BLOCK_SIZE=BLOCK,
                                               mask_mod=mask,
                                               seq_lengths=(case.tokens, case.tokens))
    compiled = torch.compile(flex.flex_attention, dynamic=False)
    q, k, v = (x[None].clone().requires_grad_() for x in (case.q, case.k, case.v))
    leaves = [q, k, v] + ([table] if case.bias else [])

    def forward():
        with torch.no_grad():
            return compiled(q, k, v, score_mod=score, block_mask=block_mask)

    out = compiled(q, k, v, score_mod=score, block_mask=block_mask)

    def backward():
        return torch.autograd.grad(out, leaves, case.grad_out[None], retain_graph=True)

    return forward, backward, lambda result: result[0]


PEERS = {"flash varlen": flash_varlen, "SDPA": sdpa, "FlexAttention": flex_attention}


def milliseconds(call, stream):
    """GPU time of one call: a graph of several, the median of ten replays."""
    for _ in range(2):
        call()
    stream.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed(work):
        begin.record(stream)
        work()
        end.record(stream)
        end.synchronize()
        return begin.elapsed_time(end)

    calls = min(20, max(2, int(10 / timed(call))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            call()
    graph.replay()
    return sorted(timed(graph.replay) for _ in range(10))[5] / calls


def measure_peer(make, case):
    """{direction: {"ms": t} or {"reason": text}}"""
    result = {}
    stream = torch.cuda.Stream()
    reason = lambda error: {"reason": str(error).strip().splitlines()[0][:160]}
    try:
        with torch.cuda.stream(stream):
            forward, backward, rows = make(case)
            out = rows(forward()).float()
            stream.synchronize()
            if case.expected is None:
                case.expected = out
            error = ((out - case.expected).norm() / case.expected.norm()).item()
            if not error < 5e-3:
                raise Unserved(f"differs from the other peers by {error:.1e}")
    except Exception as error:  # whatever a call says about a case it does not serve
        return {"forward": reason(error), "backward": reason(error)}
    for direction, call in (("forward", forward), ("backward", backward)):
        try:
            with torch.cuda.stream(stream):
                result[direction] = {"ms": milliseconds(call, stream)}
        except Exception as error:
            result[direction] = reason(error)
    return result


def run_winnow(program, names, folder):
    """{case: row} of a Google Benchmark program."""
    environment = dict(os.environ, **({"WINNOW_WORKLOADS": folder} if folder else {}))
    with tempfile.TemporaryDirectory() as place:
        report = pathlib.Path(place) / "report.json"
        subprocess.run([program, f"--benchmark_filter=^({'|'.join(names)})/half/warm/",
                        f"--benchmark_out={report}", "--benchmark_out_format=json"],
                       check=True, env=environment, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        rows = json.loads(report.read_text())["benchmarks"]
    return {row["name"].split("/")[0]: row for row in rows if not row.get("error_occurred")}


def cell(entry, own):
    if "ms" not in entry:
        return "-"
    return f"{entry['ms']:.3f} ({entry['ms'] / own:.1f}x)" if own else f"{entry['ms']:.3f}"


def print_table(rows):
    print("GPU ms, and the ratio to winnow's time; above 1x winnow is faster")
    print(f"{'case':26}{'':10}{'winnow':>9}{'floor':>9}" + "".join(f"{p:>18}" for p in PEERS))
    reasons = {}
    for row in rows:
        own = row.get("winnow_ms")
        line = f"{row['case']:26}{row['direction']:10}"
        line += f"{own:9.3f}{row['floor_ms']:9.3f}" if own else f"{'-':>9}{'-':>9}"
        for peer in PEERS:
            entry = row["peers"][peer]
            line += f"{cell(entry, own):>18}"
            if "reason" in entry:
                reasons.setdefault((peer, entry["reason"]), []).append(row["case"])
        print(line)
    for (peer, reason), names in reasons.items():
        print(f"{peer}: {', '.join(dict.fromkeys(names))}: {reason}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--winnow-bench", action="append", default=[], metavar="PROGRAM")
    parser.add_argument("--workloads", default=os.environ.get("WINNOW_WORKLOADS"))
    parser.add_argument("--cases", default="")
    parser.add_argument("--peers", default="", help="regular expression")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("compare_pytorch.py: no GPU that PyTorch can use")

    makers = make_cases(arguments.workloads, arguments.cases)
    own = {"forward": {}, "backward": {}}
    for program in arguments.winnow_bench:
        direction = "backward" if "backward" in pathlib.Path(program).name else "forward"
        own[direction] = run_winnow(program, list(makers), arguments.workloads)
    rows = []
    for name, make in makers.items():
        case = make(name)
        measured = {}
        for peer, function in PEERS.items():
            if re.search(arguments.peers, peer):
                measured[peer] = measure_peer(function, case)
            else:
                measured[peer] = {d: {"reason": "not asked for"} for d in own}
        for direction in own:
            row = {"case": name, "direction": direction, "tokens": case.tokens,
                   "windows": len(case.sizes), "heads": case.heads, "dim": case.dim,
                   "peers": {peer: measured[peer][direction] for peer in PEERS}}
            if name in own[direction]:
                row["winnow_ms"] = own[direction][name]["real_time"] * 1e-3
                row["floor_ms"] = own[direction][name]["floor_us"] * 1e-3
            rows.append(row)
        del case
        torch._dynamo.reset()
        torch.cuda.empty_cache()
    print_table(rows)
    if arguments.out:
        context = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
                   "cuda": torch.version.cuda, "commit": os.environ.get("WINNOW_COMMIT", "")}
        arguments.out.write_text(json.dumps({"context": context, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
