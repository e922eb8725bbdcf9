"""What a reader moves: pictures behind sliders, layers, curves, nuclei, and questions that answer back.

    sal.widgets.layer_explorer(model, x, photo)
    sal.widgets.frames({("0 %", "1 look"): one_map, ...}, ("noise", "looks"), alt="The gradient for tabby.")

Everything is computed beforehand and stored with the notebook, and moved by the browser alone; only
:func:`live_explorer` needs a kernel.
"""

from smoothsal_lib.widgets.explorer import Explorer
from smoothsal_lib.widgets.frames import frames
from smoothsal_lib.widgets.layers import layer_explorer
from smoothsal_lib.widgets.live import live_explorer
from smoothsal_lib.widgets.nuclei import nuclei_ranking
from smoothsal_lib.widgets.player import insertion_player
from smoothsal_lib.widgets.quiz import quiz
from smoothsal_lib.widgets.taps import taps

__all__ = [
    "Explorer",
    "frames",
    "insertion_player",
    "layer_explorer",
    "live_explorer",
    "nuclei_ranking",
    "quiz",
    "taps",
]
