"""What is done to codes before a classifier, beyond scikit-learn's own."""

from __future__ import annotations

import numpy as np
from sklearn.preprocessing import Normalizer


def signed_root(X: np.ndarray) -> np.ndarray:
    """Return sign(x) √|x| of each number: bursts of one feature count less."""
    return np.sign(X) * np.sqrt(np.abs(X))


class SignedRoot(Normalizer):
    """Take the signed square root of each number, then bring each row to length 1.

    The power transform of Razavian et al., "CNN features off-the-shelf" (2014).
    """

    def transform(self, X: np.ndarray, copy: bool | None = None) -> np.ndarray:
        """Return the normalised rows."""
        return super().transform(signed_root(X), copy)
