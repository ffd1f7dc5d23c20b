"""PCEN's running average by several ways: milliseconds a clip and the largest relative error.

KERAS_BACKEND=jax python benchmarks/smoother.py [--clips 32]
"""

import argparse
import statistics
import time

import numpy as np
from keras import backend, ops
from scipy.signal import lfilter

from birdtpu.inference.runtimes.keras import compiled
from birdtpu.ops import pcen

FRAMES, BANDS, COEF = 938, 128, 0.025
KEEP = 1 - COEF


def one_product(x):
    """One lower-triangular matrix over all frames."""
    start = (KEEP ** np.arange(1, FRAMES + 1)).astype(np.float32)[:, None]
    return ops.matmul(ops.convert_to_tensor(pcen._decays(KEEP, FRAMES, 0) * np.float32(COEF)), x) + start


def associative_scan(x):
    first = ops.concatenate([x[:, :1] * COEF + KEEP, x[:, 1:] * COEF], axis=1)

    def joined(early, late):
        return early[0] * late[0], late[0] * early[1] + late[1]

    return ops.associative_scan(joined, (ops.full_like(x, KEEP), first), axis=1)[1]


def loop(x):
    def step(state, frame):
        state = KEEP * state + COEF * frame
        return state, state

    frames = ops.moveaxis(x, 1, 0)
    return ops.moveaxis(ops.scan(step, ops.ones_like(frames[0]), frames)[1], 0, 1)


def two_products(x):
    return pcen.smooth(x, COEF)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=32)
    clips = parser.parse_args().clips
    x = (np.random.default_rng(0).random((clips, FRAMES, BANDS)) ** 8 * 1e9).astype(np.float32)
    start = np.full((clips, 1, BANDS), KEEP)
    truth = lfilter([COEF], [1, -KEEP], x.astype(np.float64), axis=1, zi=start)[0]
    for way in (one_product, associative_scan, loop, two_products):
        function, seconds = compiled(way), []
        error = np.abs(ops.convert_to_numpy(function(x)) / truth - 1).max()
        for _ in range(15):
            began = time.perf_counter()
            ops.convert_to_numpy(function(x))
            seconds.append(time.perf_counter() - began)
        milliseconds = 1e3 * statistics.median(seconds) / clips
        print(f"{backend.backend()}: {way.__name__}: {milliseconds:.2f} ms a clip, error {error:.1e}")


if __name__ == "__main__":
    main()
