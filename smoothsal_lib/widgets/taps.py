"""Which taps of a kernel an input position meets."""

from __future__ import annotations

from smoothsal_lib.widgets.explorer import Explorer

KERNELS, STRIDES, DILATIONS = (1, 7), (1, 4), (1, 3)  # the least and the most
SIZE = 12  # positions a side, a multiple of every stride


def taps(kernel: int = 3, stride: int = 2, dilation: int = 1) -> Explorer:
    """Choose a kernel, a stride and a dilation, and see which taps each input position meets.

    Position i meets tap t when t d = i + p (mod s), with the dilation d, the stride s and the padding
    p = d (k - 1) // 2, away from the border; rows and columns each on their own. Left, every position bears the number
    of taps that it meets, which is its gradient when all weights and the incoming gradient are 1; a frame holds one
    position of every parity class. A position is chosen by a click, or by the sliders for its row and column; right,
    the taps that it meets are filled in.

    Args:
        kernel: size to begin with, 1 to 7.
        stride: to begin with, 1 to 4.
        dilation: to begin with, 1 to 3.

    Returns:
        The explorer, for the last line of a cell.

    Raises:
        ValueError: for a size, stride or dilation out of range.
    """
    for name, value, (least, most) in (
        ("kernel", kernel, KERNELS),
        ("stride", stride, STRIDES),
        ("dilation", dilation, DILATIONS),
    ):
        if not least <= value <= most:
            raise ValueError(f"{name} = {value} is out of range: choose {least} to {most}")
    axes = [
        {"name": name, "least": least, "most": most, "start": start}
        for name, (least, most), start in (
            ("kernel", KERNELS, kernel),
            ("stride", STRIDES, stride),
            ("dilation", DILATIONS, dilation),
        )
    ]
    label = "Parity classes: choose kernel, stride and dilation, and an input position, to see which taps it meets."
    return Explorer("taps", label, {"axes": axes, "size": SIZE})
