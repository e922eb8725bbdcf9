"""Draw the README's picture: python book/figures/teaser.py"""

from pathlib import Path

import smoothsal_lib as sal

LAYERS = ("layer1.1", "layer2.1", "layer3.1")


def main() -> None:
    """Write ``teaser.png`` beside this file."""
    model = sal.load_model("tiny_resnet")
    x, photo = sal.load_photo("chelsea", size=128)
    rows = {}
    for label, fix in (("as it is", None), ("repaired", "backward")):
        gradients = sal.explain(model, x, layers=LAYERS, method="gradient", fix=fix)
        rows[label] = {name: sal.saliency_map(gradients[name], "abs_mean")[0] for name in LAYERS}
    sal.plot.maps(rows, photo=photo).savefig(Path(__file__).with_name("teaser.png"), dpi=150)


if __name__ == "__main__":
    main()
