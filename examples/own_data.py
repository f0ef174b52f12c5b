"""Data sets of one's own: `config.data.name = 'examples.own_data:images'`, or `'examples.own_data:recordings'`."""

import numpy as np
from sklearn.datasets import load_digits

from cpng_jax.data import Dataset, from_arrays, from_recordings


def images(config) -> Dataset:
    """Images, uint8 `[N, H, W, C]`, and labels from 0 on: of the digits of scikit-learn 1,400 are for training."""
    pixels, labels = load_digits(return_X_y=True)
    scans = (pixels * 15).astype(np.uint8).reshape(-1, 8, 8, 1)
    return from_arrays(config, (scans[:1400], labels[:1400]), (scans[1400:], labels[1400:]))


def recordings(config) -> Dataset:
    """Events `(x, y, t, p)`: an edge that moves right or left before a sensor of 12 rows and 16 columns."""
    step, y = (axis.reshape(-1) for axis in np.indices((16, 12)))
    labels = np.arange(200) % 2
    moving = [(15 - step if label else step, y, 1000 * step, np.ones_like(step)) for label in labels]
    return from_recordings(config, (moving, labels), sensor=(12, 16), cache='edges', class_names=['right', 'left'])
