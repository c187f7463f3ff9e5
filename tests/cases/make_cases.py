#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the replay cases beside this file, their expectations by oracle.py.

    make_cases.py            writes all cases
    make_cases.py --check    checks that the cases here are what would be written

Inputs that winnow may round (q, k, v, grad_out, tables, features) are multiples of a power of two
with at most eight significant bits, so float16 and bfloat16 hold them exactly and one expectation
serves every storage type. The oracle's gradients are checked by finite differences first.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile
import zlib

import numpy as np

import oracle

HERE = pathlib.Path(__file__).resolve().parent
F = np.float32


def normal(rng, *shape, deviation=1.0):
    """~ N(0, deviation²), exact in eight bits; deviation is a power of two."""
    step = deviation / 64
    return (np.clip(np.round(rng.randn(*shape) * 64), -255, 255) * step).astype(F)


def tables(rng, rows, heads, dim, names="qkv"):
    return {f"table_{n}": normal(rng, rows, 3, heads, dim, deviation=0.5) for n in names}


def bias(rng, window, heads):
    return {"bias_table": normal(rng, (2 * window - 1) ** 2, heads, deviation=0.5)}


def qkv(rng, tokens, heads, dim, backward=True):
    names = ["q", "k", "v"] + (["grad_out"] if backward else [])
    return {name: normal(rng, tokens, heads, dim) for name in names}


def cubic(size, quant_length, shifted=False, **more):
    return dict(type="cubic", size=size, shifted=shifted, quant_length=quant_length, **more)


def spherical(size, quant_length, a, shifted=False, **more):
    return dict(type="spherical", size=size, shifted=shifted, quant_length=quant_length,
                exponential_a=a, **more)


def grid(batch, height, width, window, shift):
    return dict(type="grid", batch=batch, height=height, width=width, window=window, shift=shift)


def clear_of_borders(coords, batch, spec):
    """Which tokens keep clear of where rounding decides: spherical coordinates come from library
    functions that differ in the last bits."""
    s = oracle.spherical_coordinates(coords)
    u = oracle.locate(s, spec).astype(np.float64) * spec["quant_length"]
    at_origin = s == s.min(0)  # exact, whatever the functions
    clear = ((np.abs(u - np.round(u)) > 1e-3) | (("origin" not in spec) & at_origin)).all(1)
    thresholds = np.append(oracle.split_thresholds(spec["exponential_a"]), 0.0)
    for window in oracle.point_windows(spec, coords, batch):
        radius = s[window.tokens, 2].astype(np.float64)
        delta = np.abs(radius[:, None] - radius)[..., None]
        near = (np.abs(delta - thresholds) < 1e-4 * (1 + thresholds)).any(-1)
        clear[window.tokens[np.tril(near, -1).any(1)]] = False
    return clear


def scan(rng, tokens, spec, batch):
    """Points about a sensor at 0 that lie clear of the borders of spherical windows."""
    coords = np.empty((0, 3), F)
    while len(coords) < tokens:
        missing = tokens - len(coords)
        direction = rng.randn(missing, 3)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        radius = rng.uniform(1, 5, (missing, 1))
        coords = np.concatenate([coords, (direction * radius).astype(F)])
        coords = coords[clear_of_borders(coords, batch[:len(coords)], spec)]
    assert clear_of_borders(coords, batch, spec).all()
    return coords


class Case:
    """What a case's folder holds."""

    def __init__(self, spec, inputs, expected):
        self.spec, self.inputs, self.expected = spec, inputs, expected

    def write(self, folder):
        (folder / "expected").mkdir(parents=True)
        (folder / "case.json").write_text(json.dumps(self.spec, indent=2) + "\n")
        for name, array in self.inputs.items():
            np.save(folder / f"{name}.npy", array)
        for name, array in self.expected.items():
            array = array if array.dtype == np.int32 else array.astype(F)
            np.save(folder / "expected" / f"{name}.npy", array)


def attention_case(window, position, windows, arrays, scale, own_tables=None, **inputs):
    """A case without head groups."""
    own_tables = own_tables or {}
    group = oracle.Group(arrays["q"].shape[1], windows, own_tables)
    expected = oracle.attention(arrays["q"], arrays["k"], arrays["v"], scale, [group],
                                arrays.get("grad_out"))
    spec = {"op": "window_attention", "window": window, "position": position, "scale": scale}
    return Case(spec, {**arrays, **own_tables, **inputs},
                {name.removesuffix(".0"): array for name, array in expected.items()})


def group_case(descriptions, arrays, scale, **inputs):
    """descriptions: (heads, window, position, windows, tables, other arrays of the group)."""
    groups = [oracle.Group(d[0], d[3], d[4]) for d in descriptions]
    expected = oracle.attention(arrays["q"], arrays["k"], arrays["v"], scale, groups,
                                arrays.get("grad_out"))
    spec = {"op": "window_attention", "scale": scale,
            "head_groups": [{"heads": d[0], "window": d[1], "position": d[2]}
                            for d in descriptions]}
    own = {f"{name}.{g}": array for g, d in enumerate(descriptions)
           for name, array in {**d[4], **d[5]}.items()}
    return Case(spec, {**arrays, **own, **inputs}, expected)


def point_case(rng, window, position, coords, heads, dim, names="qkv", batch=None):
    tokens = len(coords)
    batch = np.zeros(tokens, np.int32) if batch is None else batch
    rows = 2 * window["quant_length"] - (window["type"] == "cubic")
    own = tables(rng, rows, heads, dim, names) if position == "contextual" else {}
    return attention_case(window, position, oracle.point_windows(window, coords, batch),
                          qkv(rng, tokens, heads, dim), dim ** -0.5, own, coords=coords,
                          batch=batch)


def cubic_plain(rng):
    window = cubic([0.7, 0.9, 1.5], 1)
    return point_case(rng, window, "none", rng.uniform(-1, 1, (60, 3)).astype(F), 1, 16)


def cubic_contextual_shifted(rng):
    """Batch ids in any order; batch item 1 is empty."""
    batch = rng.choice([0, 2, 3], 56).astype(np.int32)
    coords = rng.uniform(-3, 3, (56, 3)).astype(F) * F(0.5)
    return point_case(rng, cubic([2.2, 1.9, 2.1], 4, shifted=True), "contextual", coords, 2, 8,
                      batch=batch)


def cubic_given_origin(rng):
    """Far from 0, and every coordinate on a border of a position, many on one of a cell."""
    coords = (rng.randint(-12, 12, (40, 3)) / 8 + [4096, -512, 8]).astype(F)
    window = cubic([2.0, 1.5, 2.5], 4, origin=[4095.5, -513.0, 8.25])
    return point_case(rng, window, "contextual", coords, 1, 8)


def cubic_table_q(rng):
    coords = rng.uniform(0, 2, (32, 3)).astype(F)
    return point_case(rng, cubic([1.1] * 3, 3), "contextual", coords, 1, 8, "q")


def cubic_tables_qk(rng):
    coords = rng.uniform(0, 2, (32, 3)).astype(F)
    return point_case(rng, cubic([1.3] * 3, 24), "contextual", coords, 1, 8, "qk")


def cubic_table_v(rng):
    coords = rng.uniform(0, 2, (32, 3)).astype(F)
    return point_case(rng, cubic([1.3] * 3, 3, shifted=True), "contextual", coords, 2, 8, "v")


def spherical_contextual(rng):
    window = spherical([90.0, 60.0, 5.0], 12, 0.05)
    batch = np.sort(rng.randint(0, 2, 56)).astype(np.int32)
    coords = scan(rng, 56, window, batch)
    return point_case(rng, window, "contextual", coords, 2, 8, batch=batch)


def spherical_wrap(rng):
    """Half a window's shift makes the first and the last window of theta one."""
    window = spherical([90.0, 90.0, 8.0], 6, 0.125, shifted=True, wrap_theta=True,
                       origin=[0.0, 0.0, 0.0])
    batch = np.zeros(48, np.int32)
    return point_case(rng, window, "contextual", scan(rng, 48, window, batch), 1, 16, batch=batch)


def labels_contextual(rng):
    """Negative labels; the quant length follows from the tables."""
    labels = rng.choice([-7, -1, 0, 3, 5, 2 ** 31 - 1], 48).astype(np.int32)
    positions = rng.randint(0, 5, (48, 3)).astype(np.int32)
    return attention_case({"type": "labels"}, "contextual",
                          oracle.label_windows(labels, positions, 5), qkv(rng, 48, 2, 8), 8 ** -0.5,
                          tables(rng, 9, 2, 8), labels=labels, positions=positions)


def labels_radius(rng):
    """Radii and thresholds are exact, and many pairs lie on a threshold."""
    labels = rng.randint(-1, 4, 40).astype(np.int32)
    positions = rng.randint(0, 7, (40, 3)).astype(np.int32)
    radius = (rng.randint(0, 256, 40) / 32).astype(F)
    window = {"type": "labels", "quant_length": 7, "exponential_a": 0.125}
    return attention_case(window, "contextual",
                          oracle.label_windows(labels, positions, 7, radius, 0.125),
                          qkv(rng, 40, 1, 8), 8 ** -0.5, tables(rng, 14, 1, 8), labels=labels,
                          positions=positions, radius=radius)


def labels_plain(rng):
    labels = rng.randint(-2, 5, 36).astype(np.int32)
    return attention_case({"type": "labels"}, "none", oracle.label_windows(labels),
                          qkv(rng, 36, 2, 24), 24 ** -0.5, labels=labels)


def labels_one_window(rng):
    labels = np.full(100, 4, np.int32)
    return attention_case({"type": "labels"}, "none", oracle.label_windows(labels),
                          qkv(rng, 100, 1, 8), 8 ** -0.5, labels=labels)


def labels_none_assigned(rng):
    labels = np.full(5, -1, np.int32)
    return attention_case({"type": "labels"}, "none", oracle.label_windows(labels),
                          qkv(rng, 5, 1, 8), 8 ** -0.5, labels=labels)


def large_logits(rng):
    """Logits of some ± 100; forward only."""
    labels = rng.randint(0, 3, 40).astype(np.int32)
    return attention_case({"type": "labels"}, "none", oracle.label_windows(labels),
                          qkv(rng, 40, 1, 16, backward=False), 8.0, labels=labels)


def nan_contained(rng):
    """NaN reaches all of its window (k), one channel of it (v) or one row (q), nothing else."""
    labels = np.repeat(np.arange(5, dtype=np.int32), 6)[rng.permutation(30)]
    arrays = qkv(rng, 30, 2, 8, backward=False)
    first = [np.flatnonzero(labels == label)[0] for label in range(3)]
    arrays["k"][first[0], 0, 3] = np.nan
    arrays["v"][first[1], 1, 5] = np.nan
    arrays["q"][first[2], 0, 0] = np.nan
    return attention_case({"type": "labels"}, "none", oracle.label_windows(labels), arrays,
                          8 ** -0.5, labels=labels)


def grid_bias_shift(rng):
    window = grid(1, 8, 12, 4, 2)
    return attention_case(window, "bias", oracle.grid_windows(window), qkv(rng, 96, 2, 8),
                          8 ** -0.5, bias(rng, 4, 2))


def grid_bias_kept(rng):
    window = grid(2, 6, 9, 3, 1)
    kept = np.array([[5, 0, 3], [2, 4, 5]], np.int32)
    return attention_case(window, "bias", oracle.grid_windows(window, kept), qkv(rng, 108, 1, 8),
                          8 ** -0.5, bias(rng, 3, 1), kept=kept)


def grid_keep_none(rng):
    window = grid(1, 4, 4, 2, 0)
    kept = np.empty((1, 0), np.int32)
    return attention_case(window, "bias", oracle.grid_windows(window, kept), qkv(rng, 16, 1, 8),
                          8 ** -0.5, bias(rng, 2, 1), kept=kept)


def head_groups(rng):
    """SphereFormer's: cubic windows for the first heads, spherical for the rest."""
    batch = rng.randint(0, 2, 48).astype(np.int32)
    cube, sphere = cubic([5.0] * 3, 4), spherical([120.0, 90.0, 5.0], 6, 0.1)
    coords = scan(rng, 48, sphere, batch)
    return group_case([(1, cube, "contextual", oracle.point_windows(cube, coords, batch),
                        tables(rng, 7, 1, 8), {}),
                       (2, sphere, "contextual", oracle.point_windows(sphere, coords, batch),
                        tables(rng, 12, 2, 8), {})],
                      qkv(rng, 48, 3, 8), 8 ** -0.5, coords=coords, batch=batch)


def grid_head_groups(rng):
    """A pruned group with bias, a shifted one without, and labels."""
    pruned, shifted = grid(1, 6, 6, 3, 0), grid(1, 6, 6, 2, 1)
    kept = np.array([[3, 1]], np.int32)
    labels = rng.randint(-1, 4, 36).astype(np.int32)
    return group_case([(1, pruned, "bias", oracle.grid_windows(pruned, kept), bias(rng, 3, 1),
                        {"kept": kept}),
                       (2, shifted, "none", oracle.grid_windows(shifted), {}, {}),
                       (1, {"type": "labels"}, "none", oracle.label_windows(labels), {},
                        {"labels": labels})],
                      qkv(rng, 36, 4, 8), 8 ** -0.5)


def single_token(rng):
    return point_case(rng, cubic([1.0] * 3, 2), "contextual", np.array([[5, -3, 1]], F), 2, 8)


def zero_tokens(rng):
    return point_case(rng, cubic([1.0] * 3, 2), "contextual", np.empty((0, 3), F), 2, 8)


def selection_case(features, height, width, window, shift, prune_ratio):
    spec = {"op": "window_selection", "batch": len(features), "height": height, "width": width,
            "window": window, "shift": shift, "prune_ratio": prune_ratio}
    return Case(spec, {"features": features}, {"kept": oracle.select(features, spec)})


def selection_plain(rng):
    return selection_case(normal(rng, 2, 14 * 21, 3), 14, 21, 7, 0, 0.25)


def selection_shifted_padded(rng):
    """12 x 16 after padding."""
    return selection_case(normal(rng, 3, 11 * 14, 2), 11, 14, 4, 3, 0.5)


def selection_ties(rng):
    """All windows of image 0 alike, two of image 1 without any feature."""
    tile = normal(rng, 9, 2)
    features = normal(rng, 2, 6, 9, 2)
    features[0] = np.tile(tile.reshape(3, 3, 2), (2, 3, 1))
    features[1, 0:3, 3:9] = 0
    return selection_case(features.reshape(2, 54, 2), 6, 9, 3, 0, 0.1)


def selection_rounding(rng):
    """10 * (1 - 0.9) is below 1 in double: nothing is kept."""
    return selection_case(normal(rng, 1, 4 * 10, 1), 4, 10, 2, 1, 0.9)


def selection_nan(rng):
    features = normal(rng, 2, 36, 3)
    features[0, 35, 1] = np.nan
    return selection_case(features, 6, 6, 2, 1, 0.6)


CASES = [cubic_plain, cubic_contextual_shifted, cubic_given_origin, cubic_table_q, cubic_tables_qk,
         cubic_table_v, spherical_contextual, spherical_wrap, labels_contextual, labels_radius,
         labels_plain, labels_one_window, labels_none_assigned, large_logits, nan_contained,
         grid_bias_shift, grid_bias_kept, grid_keep_none, head_groups, grid_head_groups,
         single_token, zero_tokens, selection_plain, selection_shifted_padded, selection_ties,
         selection_rounding, selection_nan]


def check_oracle():
    """Finite differences of every gradient, with all kinds of groups in one call."""
    rng = np.random.RandomState(1)
    spec = grid(1, 4, 4, 2, 1)
    labels = rng.randint(-1, 3, 16)
    positions = rng.randint(0, 2, (16, 3))
    radius = rng.uniform(0, 1, 16).astype(F)
    wide = {name: table.astype(np.float64) for name, table in tables(rng, 3, 1, 3).items()}
    radial = {name: table.astype(np.float64) for name, table in tables(rng, 4, 1, 3).items()}
    groups = [oracle.Group(1, oracle.grid_windows(spec), {"bias_table": rng.randn(9, 1)}),
              oracle.Group(1, oracle.label_windows(labels, positions, 2), wide),
              oracle.Group(1, oracle.label_windows(labels, positions, 2, radius, 0.25), radial)]
    oracle.check_gradients(*rng.randn(3, 16, 3, 3), 0.5, groups, rng.randn(16, 3, 3))


def write_all(target):
    for make in CASES:
        seed = zlib.crc32(make.__name__.encode())
        make(np.random.RandomState(seed)).write(target / make.__name__)


def same(one, other):
    if one.suffix != ".npy":
        return one.read_bytes() == other.read_bytes()
    a, b = np.load(one), np.load(other)
    return a.dtype == b.dtype and a.shape == b.shape and np.allclose(a, b, 1e-6, 1e-6, True)


def differing(made, found):
    """Files, relative to both folders, that are in one only or not the same."""
    files = {path.relative_to(root) for root in (made, found) for path in root.glob("*/**/*")
             if path.suffix in (".npy", ".json")}
    return sorted(str(path) for path in files
                  if not ((made / path).exists() and (found / path).exists() and
                          same(made / path, found / path)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    arguments = parser.parse_args()
    np.seterr(invalid="ignore")  # NaN is among the inputs
    check_oracle()
    with tempfile.TemporaryDirectory() as folder:
        made = pathlib.Path(folder)
        write_all(made)
        if arguments.check:
            differences = differing(made, HERE)
            print("\n".join(f"differs: {path}" for path in differences) or "all cases agree")
            return 1 if differences else 0
        for case in sorted(made.iterdir()):
            shutil.rmtree(HERE / case.name, ignore_errors=True)
            shutil.copytree(case, HERE / case.name)
    print(f"wrote {len(CASES)} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
