"""The loss scale of float16 training: how far the gradients are lifted so that the small ones do not vanish.

Source: "Mixed precision training" (Micikevicius et al., 2018), section 3.2, with the scale found while training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

GROWTH_STEPS = 2000  # without overflow, after which the scale is doubled
LARGEST = 2.0**24  # it is not doubled beyond this


@dataclass
class LossScaling:
    """A power of two that the gradients of the towers are multiplied by in the backward pass, and divided by after it.

    A power of two changes no digit of a gradient, only whether float16 can hold it.
    """

    scale: float = 2.0**16
    steps_since_overflow: int = 0  # or since the scale was last doubled

    def adapt(self, overflowed: bool) -> bool:
        """Choose the scale of the next step.

        Args:
            overflowed: some gradient of this step is not finite.

        Returns:
            Whether the step is to be skipped and training goes on. False when gradients overflow without being
            scaled, too: no smaller scale will help.
        """
        if overflowed:
            self.steps_since_overflow = 0
            if self.scale < 2:
                return False
            self.scale /= 2
            return True
        self.steps_since_overflow += 1
        if self.steps_since_overflow == GROWTH_STEPS:
            self.steps_since_overflow = 0
            if self.scale < LARGEST:
                self.scale *= 2
        return False

    def state(self) -> dict[str, np.ndarray]:
        """What `from_state` takes: the scalars ``loss_scale`` (float32) and ``steps_since_overflow`` (int64)."""
        steps = np.array(self.steps_since_overflow, np.int64)
        return {"loss_scale": np.array(self.scale, np.float32), "steps_since_overflow": steps}

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> LossScaling:
        """The loss scaling that a training state holds."""
        return cls(float(state["loss_scale"]), int(state["steps_since_overflow"]))
