"""Inner training as a scan, cut into windows: horizons and resets, what a window sees, and its share of the meta-loss."""

from lopt.unroll.clock import Clock, advance, first_clock
from lopt.unroll.config import UnrollConfig
from lopt.unroll.window import InnerState, Training, Unroll, Window, WindowLosses, make_inner_step, make_unroll

__all__ = [
    "Clock",
    "InnerState",
    "Training",
    "Unroll",
    "UnrollConfig",
    "Window",
    "WindowLosses",
    "advance",
    "first_clock",
    "make_inner_step",
    "make_unroll",
]
