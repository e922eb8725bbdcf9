"""The layer explorer for a picture and a network of one's own, where there is a kernel."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from smoothsal_lib.datasets.photos import load_photo, photo_names
from smoothsal_lib.fixes import Fix
from smoothsal_lib.models import DOWNLOADED, EMBEDDED, category, class_probabilities, classifiers, load_model
from smoothsal_lib.widgets.layers import METHODS, Name, layer_explorer

if TYPE_CHECKING:
    import ipywidgets

CLASSES = 5
OWN = "your own picture"
SMALL, LARGE = 128, 224  # pixels of a picture for the embedded networks, and for all others


def live_explorer(
    model: nn.Module | str | None = None,
    *,
    size: int | None = None,
    methods: Sequence[str] = METHODS,
    fixes: Sequence[Name] | Mapping[str, str | Fix | None] | None = None,
) -> ipywidgets.VBox:
    """:func:`layer_explorer` with fields for the network, the picture and the class. It needs a running kernel.

    A picture is chosen among those that ship with scikit-image, or uploaded; the class among the five that the network
    finds most probable; the network by a name that :func:`smoothsal_lib.load_model` knows, which downloads weights that
    are not there. A network that is loaded here runs on the GPU if there is one, a network that is given where it is.
    What goes wrong is said above the maps, and the fields stay usable.

    Args:
        model: a classifier of pictures normalised as for ImageNet, or the name of one; ``None`` takes the environment
            variable ``SMOOTHSAL_MODEL``, or ``"tiny_resnet"``. For a network that is given there is no field.
        size: the picture's side in pixels; ``None`` takes 128 for the embedded networks by name, and 224 for others.
        methods: as :func:`layer_explorer` takes them.
        fixes: as :func:`layer_explorer` takes them.

    Returns:
        The fields and the explorer, for the last line of a cell.

    Raises:
        ModuleNotFoundError: without ipywidgets, version 7 or newer.
    """
    try:
        import ipywidgets
    except ModuleNotFoundError:
        raise ModuleNotFoundError("live_explorer needs ipywidgets 7 or newer: pip install ipywidgets") from None
    return _Live(ipywidgets, model, size, methods, fixes).box


# Within a widget, the classic notebook puts an output together before it stands on the page, and does not run its
# script. A picture that cannot be loaded puts the script there once more; where it has run, it finds nothing to do.
AGAIN = (
    '<img hidden alt="" src="data:," onerror="const again = document.createElement(\'script\'); '
    'again.text = this.previousElementSibling.lastElementChild.text; this.replaceWith(again)">'
)


def offered(*own: bytes) -> list[tuple[str, str | bytes]]:
    """What the field for the picture offers: names of photographs, and below them a file that was uploaded."""
    return [*((name, name) for name in photo_names()), *((OWN, file) for file in own)]


class _Live:
    """The fields, and what happens when one changes: from the network over the picture to the classes and the maps."""

    def __init__(
        self,
        widgets: Any,
        model: nn.Module | str | None,
        size: int | None,
        methods: Sequence[str],
        fixes: Sequence[Name] | Mapping[str, str | Fix | None] | None,
    ) -> None:
        self.size, self.methods, self.fixes = size, methods, fixes
        self.model = model if isinstance(model, nn.Module) else None
        wide: dict[str, Any] = {"layout": widgets.Layout(width="420px", max_width="100%")}
        name = model if isinstance(model, str) else os.environ.get("SMOOTHSAL_MODEL") or EMBEDDED[0]
        known = list(dict.fromkeys([EMBEDDED[0], *DOWNLOADED, *classifiers()]))
        self.network = widgets.Combobox(value=name, options=known, description="network", **wide)
        self.network.continuous_update = False  # a name that is half typed is no network
        self.picture = widgets.Dropdown(options=offered(), value="chelsea", description="picture", **wide)
        self.upload = widgets.FileUpload(description=OWN, accept="image/*", multiple=False, **wide)
        self.category = widgets.Dropdown(options=[], description="class", **wide)
        self.status = widgets.HTML()
        self.output = widgets.Output()
        fields = [self.picture, self.upload, self.category, self.status, self.output]
        self.box = widgets.VBox(fields if isinstance(model, nn.Module) else [self.network, *fields])
        self.network.observe(self.on_network, "value")
        self.picture.observe(self.on_picture, "value")
        self.upload.observe(self.on_upload, "value")
        self.category.observe(self.on_category, "value")
        if self.model is None:
            self.on_network()
        else:
            self.look()

    def on_network(self, _: object = None) -> None:
        """Load the network that is named; one that cannot be had leaves none, and not the one before."""
        self.model = None
        self.choose_from([])
        self.say(f"loading {self.network.value} …")
        try:
            self.model = load_model(self.network.value).to("cuda" if torch.cuda.is_available() else "cpu")
        except (ValueError, OSError, RuntimeError, ModuleNotFoundError) as error:
            return self.say(str(error), wrong=True)
        self.look()

    def on_picture(self, _: object = None) -> None:
        """Take a picture from the list."""
        self.look()

    def on_upload(self, _: object = None) -> None:
        """Put a file on the list, and take it; files are a dictionary up to ipywidgets 7, a tuple from 8 on."""
        files = self.upload.value
        files = list(files.values()) if isinstance(files, dict) else list(files)
        if files:
            self.picture.unobserve(self.on_picture, "value")
            self.picture.options = offered(bytes(files[-1]["content"]))
            self.picture.value = self.picture.options[-1][1]
            self.picture.observe(self.on_picture, "value")
            self.look()

    def on_category(self, change: Mapping[str, Any]) -> None:
        """Explain another class; the list itself is changed by :meth:`look`."""
        if change["new"] is not None and self.model is not None:
            self.explain(int(change["new"]))

    def look(self) -> None:
        """Ask the network what is in the picture, and explain its first answer."""
        if self.model is None:
            return
        self.choose_from([])
        place = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        size = self.size or (SMALL if self.network.value in EMBEDDED and self.network in self.box.children else LARGE)
        try:
            x, self.photo = load_photo(self.picture.value, size)
            self.x = x.to(place)
            chances = class_probabilities(self.model, self.x)[0]
        except (TypeError, ValueError, RuntimeError) as error:
            return self.say(str(error), wrong=True)
        best = chances.topk(min(CLASSES, len(chances)))
        options = [
            (f"{category(self.model, target)} ({chance:.0%})", target)
            for target, chance in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        self.choose_from(options)
        self.explain(options[0][1])

    def choose_from(self, options: Sequence[tuple[str, int]]) -> None:
        """Offer classes, and the first as chosen, without explaining it; none where there is nothing to explain."""
        self.category.unobserve(self.on_category, "value")
        self.category.options = options
        self.category.value = options[0][1] if options else None
        self.category.observe(self.on_category, "value")

    def explain(self, target: int) -> None:
        """Show the explorer for a class."""
        from IPython.display import clear_output, display

        assert self.model is not None
        self.say("computing …")
        try:
            explorer = layer_explorer(
                self.model, self.x, self.photo, methods=self.methods, fixes=self.fixes, target=target
            )
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            return self.say(str(error), wrong=True)
        self.say(f"computed on {self.x.device.type}, {self.x.shape[2]} × {self.x.shape[3]} pixels")
        with self.output:
            clear_output(wait=True)
            display({"text/html": explorer.html + AGAIN, "text/plain": repr(explorer)}, raw=True)

    def say(self, text: str, wrong: bool = False) -> None:
        """Write a line above the maps; maps that are not of these fields go away."""
        weight = "bold" if wrong else "normal"
        self.status.value = f'<span role="status" style="font-weight: {weight}">{escape(text)}</span>'
        if wrong:
            self.output.clear_output()
