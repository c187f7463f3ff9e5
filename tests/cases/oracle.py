# SPDX-License-Identifier: Apache-2.0
"""Window attention and window selection in float64, naive, straight from the formulas.

It shares nothing with winnow. Windows are computed in float32, because that is how they are
defined; all else is float64.
"""

import numpy as np

F = np.float32


class Window:
    """Tokens that attend to each other.

    rows: [n, n, 3] table rows (contextual), [n, n] bias rows (grid) or None.
    visible: [n, n] bool, or None where every token sees every other.
    """

    def __init__(self, tokens, rows=None, visible=None):
        self.tokens, self.rows, self.visible = tokens, rows, visible


class Group:
    """Consecutive heads with the same windows and tables.

    tables: any of table_q, table_k, table_v [R, 3, heads, D] and bias_table [rows, heads].
    """

    def __init__(self, heads, windows, tables=None):
        self.heads, self.windows, self.tables = heads, windows, tables or {}


def differences(position, quant_length):
    """[n, n, axes] rows of axes whose index is a difference of positions."""
    return position[:, None, :] - position[None, :, :] + quant_length - 1


def split_thresholds(a, count=64):
    """a, 2a, 4a, 6a, 10a, 14a, 22a, 30a, ..."""
    return np.array([a * (2.0 ** (k // 2) * (3 if k % 2 == 0 else 4) - 2) for k in range(count)])


def radial_rows(radius, a, quant_length):
    """[n, n] rows of the radial axis."""
    delta = (radius[:, None] - radius[None, :]).astype(np.float64)
    n = (split_thresholds(float(F(a))) <= np.abs(delta)[..., None]).sum(-1)
    rows = np.where(delta >= 0, quant_length + n, quant_length - 1 - n)
    return np.clip(rows, 0, 2 * quant_length - 1)


def spherical_coordinates(coords):
    x, y, z = coords.astype(np.float64).T
    theta = np.degrees(np.arctan2(y, x)) + 180
    beta = np.degrees(np.arctan2(np.hypot(x, y), z))
    return np.stack([theta, beta, np.sqrt(x * x + y * y + z * z)], 1).astype(F)


def locate(coords, spec):
    """u [N, 3] in float32: its floor is the cell, its fraction the place inside."""
    size = np.array(spec["size"], F)
    origin = np.array(spec["origin"], F) if "origin" in spec else coords.min(0, initial=np.inf)
    shift = size / F(2) if spec["shifted"] else np.zeros(3, F)
    return ((coords - origin) + shift) / size


def point_windows(spec, coords, batch):
    """Cubic and spherical windows."""
    radial = spec["type"] == "spherical"
    if radial:
        coords = spherical_coordinates(coords)
    u = locate(coords, spec)
    cell = np.floor(u)
    length = spec["quant_length"]
    position = np.minimum(length - 1, ((u - cell) * F(length)).astype(np.int64))
    if spec.get("wrap_theta"):
        cell[:, 0] %= round(360 / spec["size"][0])
    windows = []
    keys = np.column_stack([batch, cell[:, ::-1].astype(np.int64)])
    for key in np.unique(keys, axis=0):
        tokens = np.flatnonzero((keys == key).all(1))
        rows = differences(position[tokens], length)
        if radial:
            rows[..., 2] = radial_rows(coords[tokens, 2], spec["exponential_a"], length)
        windows.append(Window(tokens, rows))
    return windows


def label_windows(labels, positions=None, quant_length=1, radius=None, a=None):
    windows = []
    for label in np.unique(labels[labels >= 0]):
        tokens = np.flatnonzero(labels == label)
        rows = None
        if positions is not None:
            rows = differences(positions[tokens].astype(np.int64), quant_length)
            if radius is not None:
                rows[..., 2] = radial_rows(radius[tokens], a, quant_length)
        windows.append(Window(tokens, rows))
    return windows


def tiles(image, window, shift):
    """[windows, window * window] of a [height, width] image rolled by -shift."""
    rolled = np.roll(image, (-shift, -shift), (0, 1))
    rows, columns = rolled.shape[0] // window, rolled.shape[1] // window
    tiled = rolled.reshape(rows, window, columns, window).transpose(0, 2, 1, 3)
    return tiled.reshape(rows * columns, window * window)


def grid_windows(spec, kept=None):
    """Swin's windows; kept [B, K] names those to compute."""
    batch, height, width = spec["batch"], spec["height"], spec["width"]
    window, shift = spec["window"], spec["shift"]
    y, x = np.divmod(np.arange(window * window), window)
    rows = (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)
    # What wrapped around an edge is another region than what did not.
    wrapped_y = np.add.outer(np.arange(height) < shift, np.zeros(width, bool))
    wrapped_x = np.add.outer(np.zeros(height, bool), np.arange(width) < shift)
    region = tiles(2 * wrapped_y + wrapped_x, window, shift)
    windows = []
    for b in range(batch):
        tokens = tiles(np.arange(height * width).reshape(height, width), window, shift)
        for w in range(len(tokens)) if kept is None else kept[b]:
            visible = region[w][:, None] == region[w][None, :]
            windows.append(Window(b * height * width + tokens[w], rows, visible))
    return windows


def attention(q, k, v, scale, groups, grad_out=None):
    """All results by their names; the arrays of group g end in ".g"."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    result = {"out": np.zeros(q.shape), "lse": np.zeros(q.shape[:2])}
    if grad_out is not None:
        grad_out = grad_out.astype(np.float64)
        result.update({f"grad_{name}": np.zeros(q.shape) for name in "qkv"})
        for g, group in enumerate(groups):
            for name, table in group.tables.items():
                result[f"grad_{name}.{g}"] = np.zeros(table.shape)
    head = 0
    for g, group in enumerate(groups):
        for own in range(group.heads):
            for window in group.windows:
                _attend(q, k, v, float(F(scale)), g, group, own, head, window, grad_out, result)
            head += 1
    return result


def _attend(q, k, v, scale, g, group, own, head, window, grad_out, result):
    """One head (the group's `own`, the call's `head`) of one window."""
    t, rows = window.tokens, window.rows
    q, k, v = scale * q[t, head], k[t, head], v[t, head]

    def looked_up(name):  # [n, n, D], summed over the axes
        table = group.tables[name].astype(np.float64)
        return sum(table[rows[..., a], a, own] for a in range(3))

    at_q = looked_up("table_q") if "table_q" in group.tables else 0.0
    at_k = looked_up("table_k") if "table_k" in group.tables else 0.0
    at_v = looked_up("table_v") if "table_v" in group.tables else 0.0
    k_of_i = k[None, :, :] + at_q  # what q'_i meets
    v_of_i = v[None, :, :] + at_v + np.zeros((len(t), 1, 1))

    s = (q[:, None, :] * k_of_i).sum(-1) + (k[None, :, :] * at_k).sum(-1)
    if "bias_table" in group.tables:
        s = s + group.tables["bias_table"].astype(np.float64)[rows, own]
    if window.visible is not None:
        s = np.where(window.visible, s, -np.inf)
    top = s.max(1, keepdims=True)
    lse = top[:, 0] + np.log(np.exp(s - top).sum(1))
    p = np.exp(s - lse[:, None])
    out = (p[..., None] * v_of_i).sum(1)
    result["out"][t, head] = out
    result["lse"][t, head] = lse
    if grad_out is None:
        return

    d_out = grad_out[t, head]
    ds = p * ((d_out[:, None, :] * v_of_i).sum(-1) - (d_out * out).sum(-1, keepdims=True))
    result["grad_q"][t, head] = scale * (ds[..., None] * k_of_i).sum(1)
    result["grad_k"][t, head] = (ds[..., None] * (q[:, None, :] + at_k)).sum(0)
    result["grad_v"][t, head] = p.T @ d_out
    per_pair = {"table_q": ds[..., None] * q[:, None, :],
                "table_k": ds[..., None] * k[None, :, :],
                "table_v": p[..., None] * d_out[:, None, :]}
    for name, values in per_pair.items():
        if name in group.tables:
            for a in range(3):
                np.add.at(result[f"grad_{name}.{g}"], (rows[..., a], a, own), values)
    if "bias_table" in group.tables:
        np.add.at(result[f"grad_bias_table.{g}"], (rows, own), ds)


def check_gradients(q, k, v, scale, groups, grad_out, step=1e-5, tolerance=1e-7):
    """Compares every analytic gradient with central differences of sum(out * grad_out)."""
    analytic = attention(q, k, v, scale, groups, grad_out)
    named = {"grad_q": q, "grad_k": k, "grad_v": v}
    for g, group in enumerate(groups):
        named.update({f"grad_{name}.{g}": table for name, table in group.tables.items()})
    for name, array in named.items():
        for index in np.ndindex(array.shape):
            saved = array[index]
            loss = []
            for sign in (1, -1):
                array[index] = saved + sign * step
                loss.append((attention(q, k, v, scale, groups)["out"] * grad_out).sum())
            array[index] = saved
            numeric = (loss[0] - loss[1]) / (2 * step)
            if abs(numeric - analytic[name][index]) > tolerance * max(1, abs(numeric)):
                raise AssertionError(f"{name}{index}: {analytic[name][index]} is not {numeric}")


def importance(features, spec):
    """[B, windows]: the L2 norm over a window's tokens of the mean over channels of |x|."""
    height, width, window = spec["height"], spec["width"], spec["window"]
    magnitude = np.abs(features.astype(np.float64)).mean(-1).reshape(-1, height, width)
    padding = ((0, 0), (0, -height % window), (0, -width % window))
    magnitude = np.pad(magnitude, padding)
    return np.array([np.sqrt((tiles(image, window, spec["shift"]) ** 2).sum(1))
                     for image in magnitude])


def select(features, spec):
    """[B, K] most important windows first, ties to the lower id, NaN first."""
    score = importance(features, spec)
    kept = int(score.shape[1] * (1 - spec["prune_ratio"]))
    score = np.where(np.isnan(score), np.inf, score)
    for image in score:
        gaps = np.diff(np.sort(image[np.isfinite(image)]))
        assert all(gap == 0 or gap > 1e-4 for gap in gaps), "windows nearly tie"
    return np.argsort(-score, axis=1, kind="stable")[:, :kept].astype(np.int32)
