"""Whether a score can tell tokens apart: its spread in the first group of a patch's first prefill."""

from __future__ import annotations

import torch

__all__ = ["LEAST", "Spread"]

LEAST = 1e-3
"""Standard deviation by mean. Equally long keys have 2e-7 in float32 and, by rounding, 3e-4 to 4e-4 in bfloat16."""


class Spread:
    """Notes it layer by layer, and tells it when the device has long made it: nothing waits while a video passes."""

    def __init__(self) -> None:
        self._layers: list[torch.Tensor] = []

    @property
    def noted(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self._layers)

    def note(self, scores: torch.Tensor) -> None:
        """Scores of one layer, (..., N); one token has no spread."""
        if scores.shape[-1] > 1:
            self._layers.append((scores.float().std(-1) / scores.float().mean(-1).abs()).mean())

    def told(self) -> float:
        """That of the layer in the middle. Waits until it is there."""
        return sorted(map(float, self._layers))[len(self._layers) // 2]

    def __getstate__(self) -> dict[str, list[torch.Tensor]]:
        """A copy, which may go to another process, has noted nothing."""
        return {"_layers": []}
