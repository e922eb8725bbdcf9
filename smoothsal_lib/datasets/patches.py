"""Patches of tissue with labels and masks: what the generator and every loader of pathology give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from smoothsal_lib.models import normalize

# What a scanner sees where there is no tissue: white, (1, 3, 1, 1), normalised. As a baseline it asks what the tissue
# adds. The mean colour of photographs, 0, is a grey that no section has.
GLASS = normalize(torch.ones(1, 3, 1, 1))
STRUCTURES = ("tumour", "gland", "tumour_nuclei", "normal_nuclei", "stroma", "lumen")


@dataclass(frozen=True, eq=False)
class Patches:
    """Small pictures of tissue. Made by ``patches`` of :mod:`smoothsal_lib.datasets.tissue` and by the loaders.

    Attributes:
        images: (N, 3, H, W) uint8, RGB; :func:`smoothsal_lib.models.normalize` prepares them, divided by 255.
        labels: (N,) int64, 1 where there is tumour and 0 where there is none.
        patients: (N,) int64. Patches of one patient (of one slide, or one generated field) look alike, so all of them
            belong either to training or to test.
        masks: ``{structure: (N, H, W) bool}`` for those of :data:`STRUCTURES` that the source knows of.
        names: where each patch comes from, N words that stay the same wherever the data lies.
        mpp: micrometres a pixel; ``None`` where the source does not say.

    Raises:
        ValueError: when the parts do not belong together, in one line.
    """

    images: Tensor
    labels: Tensor
    patients: Tensor
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    names: Sequence[str] = ()
    mpp: float | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[1] != 3 or self.images.dtype != torch.uint8:
            raise ValueError(
                f"expected images (N, 3, H, W) of uint8, got {tuple(self.images.shape)} of {self.images.dtype}"
            )
        n, _, height, width = self.images.shape
        for what, values in (("labels", self.labels), ("patients", self.patients)):
            if values.shape != (n,):
                raise ValueError(f"expected {n} {what}, one a patch, got shape {tuple(values.shape)}")
        for name, mask in self.masks.items():
            if name not in STRUCTURES:
                raise ValueError(f"unknown structure {name!r}: choose from {', '.join(STRUCTURES)}")
            if mask.shape != (n, height, width) or mask.dtype != torch.bool:
                raise ValueError(
                    f"expected the mask {name!r} as {(n, height, width)} of bool, "
                    f"got {tuple(mask.shape)} of {mask.dtype}"
                )
        if self.names and len(self.names) != n:
            raise ValueError(f"expected {n} names, one a patch, got {len(self.names)}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: slice | Tensor) -> Patches:
        """Some of the patches, by a slice, by their indices, or by (N,) booleans."""
        places = torch.arange(len(self))[chosen].tolist()
        return Patches(
            self.images[chosen],
            self.labels[chosen],
            self.patients[chosen],
            {name: mask[chosen] for name, mask in self.masks.items()},
            [self.names[i] for i in places] if self.names else (),
            self.mpp,
        )

    def of_patients(self, patients: Sequence[int]) -> Patches:
        """The patches of these patients alone, in the order in which they stand."""
        return self[torch.isin(self.patients, torch.as_tensor(list(patients), dtype=self.patients.dtype))]


def together(parts: Sequence[Patches]) -> Patches:
    """Several sets of patches of one size as one, in their order, with the masks of the first of them.

    Args:
        parts: one or more, all with names and these masks.
    """
    return Patches(
        torch.cat([part.images for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.patients for part in parts]),
        {name: torch.cat([part.masks[name] for part in parts]) for name in parts[0].masks},
        [name for part in parts for name in part.names],
        parts[0].mpp,
    )


def pictures(patches: Patches) -> Tensor:
    """(N,) which picture each patch was cut from, 0, 1, ... in the order of their first patches.

    It is what a patch's name has before the first slash: ``"testB_12/0-64"`` belongs to ``"testB_12"``.
    """
    origins = [name.split("/")[0] for name in patches.names]
    known = {origin: i for i, origin in enumerate(dict.fromkeys(origins))}
    return torch.tensor([known[origin] for origin in origins], dtype=torch.int64)
