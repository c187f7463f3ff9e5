# SPDX-License-Identifier: Apache-2.0
# ---
import json
import pathlib

import numpy as np

case = pathlib.Path("case")
case.mkdir(exist_ok=True)
n, heads, dim, quant_length = 500, 2, 16, 24
random = np.random.default_rng(0)  # stands for the tensors of the framework


def save(name, array, dtype=np.float32):  # of a tensor: array.detach().cpu().numpy()
    np.save(case / f"{name}.npy", np.ascontiguousarray(array, dtype))


save("coords", random.uniform(-2, 2, (n, 3)))
save("batch", random.integers(0, 2, n), np.int32)
for name in ("q", "k", "v", "grad_out"):
    save(name, random.standard_normal((n, heads, dim)))
save("table_q", 0.5 * random.standard_normal((2 * quant_length - 1, 3, heads, dim)))
window = {"type": "cubic", "size": [0.5, 0.5, 0.5], "shifted": False, "quant_length": quant_length}
(case / "case.json").write_text(json.dumps({"op": "window_attention", "window": window,
                                            "position": "contextual", "scale": dim**-0.5}))
# ---
