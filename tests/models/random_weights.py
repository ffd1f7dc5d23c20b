"""Weights of timm's networks by a rule, so that no file of them is needed."""

import re
import zlib
from collections.abc import Mapping

import numpy as np

# The last norm of a residual branch; and the norm of queries and keys, which a softmax reads.
_SMALL = re.compile(
    r"layer\d\.\d+\.bn2|blocks\.\d\.[1-9]\.bn3|res0\.main\.point_conv|(context|local)_module.*(proj|point_conv)\.norm"
    r"|stages\.\d\.blocks\.1\.main\.point_conv|(dw\d|res\d\.0)\.m\.bn|pw2\.bn|attn\.(proj\.1|qkvs\.\d)\.bn"
)


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Each by its name and shape alone: none leaves a term of the network out, or makes its maps grow or vanish."""
    weights = {}
    for key, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
        if key.endswith(("running_var", "gain")) or (key.endswith("weight") and len(shape) == 1):
            value = rng.uniform(0.6, 1.4, shape) * (0.2 if _SMALL.search(key) and "running" not in key else 1)
        elif len(shape) == 4:
            value = rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
        else:
            # Means, biases, an attention's biases and its kernel over channels.
            value = 0.3 * rng.standard_normal(shape)
        weights[key] = value.astype(np.float32)
    return weights


def random_images(rows: int, size: tuple[int, int], seed: int) -> np.ndarray:
    """`(rows, height, width, 3)` float32 of deviation 1."""
    return np.random.default_rng(seed).standard_normal((rows, *size, 3)).astype(np.float32)
