"""How many looks: the correlation of two seeds, and the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import smoothsal_lib as sal
from smoothsal_lib.experiments import stability
from smoothsal_lib.experiments.stability import correlation
from smoothsal_lib.sampling import SmoothGrad


def test_correlation_is_pearsons_over_all_values() -> None:
    a, b = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    expected = [torch.corrcoef(torch.stack([a[i].flatten(), b[i].flatten()]))[0, 1] for i in range(2)]
    torch.testing.assert_close(correlation(a, b), torch.stack(expected))
    torch.testing.assert_close(correlation(a, 2 - 3 * a), -torch.ones(2, dtype=torch.float64))
    assert correlation(a, torch.ones_like(a)).tolist() == [0, 0]


def test_two_seeds_of_as_many_looks_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stability, "BLOCKS", (1, 2))
    monkeypatch.setattr(stability, "LAYERS", ("layer3.1",))
    model, (x, _) = sal.load_model(), sal.load_photo(size=64)
    target = sal.capture(model, x).target
    found = dict(stability.stability(model, x, torch.tensor([[0.0, 0, 31, 63]]), 0.2))
    assert list(found) == [1, 3]

    def mean(*blocks: tuple[int, int]) -> torch.Tensor:
        pictures = [picture for n, seed in blocks for _, picture in SmoothGrad(n, 0.2, seed).images(x)]
        maps = [sal.explain(model, one, target, "layer3.1", "gradient", None)["layer3.1"] for one in pictures]
        return torch.stack(maps).mean(0)

    for looks, one, other in ((1, mean((1, 0)), mean((1, 2))), (3, mean((1, 0), (2, 1)), mean((1, 2), (2, 3)))):
        assert found[looks]["agreement"]["layer3.1"] == pytest.approx(correlation(one, other).tolist(), abs=1e-3)


def test_record(fake_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stability, "BLOCKS", (1, 1))
    monkeypatch.setattr(stability, "NOISES", (0.1, 0.3))
    stability.main(["--data", str(fake_data), "--out", str(tmp_path), "--device", "cpu", "--limit", "2"])
    record = json.loads((tmp_path / "stability.json").read_text())
    found = {(row["noise_percent"], row["looks"], row["layer"], row["measure"]): row for row in record["rows"]}
    assert record["images"] == 2
    assert len(found) == len(record["rows"]) == 2 * 2 * 3 * 4
    assert {key[0] for key in found} == {10, 30}
    assert all(-1 <= row["mean"] <= 1 and row["error"] >= 0 for row in found.values())
