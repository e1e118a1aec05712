"""Principal components from streamed rows, and their recovery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from torch_caption.data.projection import Projection
from torch_caption.encoders import pca
from torch_caption.encoders.pca import Moments, fit, recover
from torch_caption.errors import ConfigError, DataError

N, D, K = 300, 12, 5


def rows(n: int = N, seed: int = 0) -> torch.Tensor:
    """Correlated, far from 0, as features are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(D, D, generator=torch.Generator().manual_seed(9))
    return (torch.randn(n, D, generator=generator) @ mix + 50).relu()


def moments(x: torch.Tensor, piece: int = N) -> Moments:
    found = Moments(D)
    for part in x.split(piece):
        found.update(part)
    return found


@pytest.mark.parametrize("piece", [1, 299, 300])
def test_moments_do_not_depend_on_the_pieces(piece, monkeypatch):
    monkeypatch.setattr(pca, "CHUNK", 16)
    found, x = moments(rows(), piece), rows().double()
    torch.testing.assert_close(found.mean, x.mean(0), rtol=1e-13, atol=0)
    centred = x - x.mean(0)
    torch.testing.assert_close(found.scatter, centred.T @ centred, rtol=1e-10, atol=1e-8)
    assert found.count == N


def test_components_are_those_of_the_singular_values():
    x = rows().double()
    projection = fit(moments(rows()), K, "--pca")
    _, sizes, vectors = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    assert projection.components.shape == (D, K)
    for ours, theirs in zip(projection.components.T.double(), vectors[:K], strict=True):
        assert float(ours @ theirs) ** 2 == pytest.approx(1, abs=1e-6)
        assert ours[ours.abs().argmax()] > 0
    assert projection.share == pytest.approx(float((sizes[:K] ** 2).sum() / (sizes**2).sum()))
    y = projection(rows())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), (x - x.mean(0)) @ projection.components.double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y.mean(0), torch.zeros(K), rtol=0, atol=1e-4)


def test_a_fraction_of_the_variance_selects_the_fewest_components():
    found = moments(rows())
    shares = [fit(found, count, "--pca").share for count in range(1, D + 1)]
    for share in (0.3, 0.8, 0.99):
        projection = fit(found, share, "--pca")
        count = projection.components.shape[1]
        assert projection.share == pytest.approx(shares[count - 1])
        assert shares[count - 1] >= share
        assert count == 1 or shares[count - 2] < share
    assert fit(found, shares[2] - 1e-9, "--pca").components.shape[1] == 3


@pytest.mark.parametrize(("size", "n"), [(D + 1, N), (4, 4), (1, 1)])
def test_too_many_components_are_refused(size, n):
    with pytest.raises(DataError, match=rf"--pca {size}: {n} rows of 12 numbers have at most \d+ components"):
        fit(moments(rows(n)), size, "--pca")
    assert fit(moments(rows(5)), 4, "--pca").components.shape == (D, 4)


@pytest.mark.parametrize("size", [0, 1.5, float("nan"), float("inf")])
def test_an_invalid_number_of_components_is_refused(size):
    with pytest.raises(ConfigError, match=r"--pca .*: give a number of components, or a fraction"):
        pca.check_size(size, "--pca")


def test_grids_are_projected_position_by_position():
    projection = fit(moments(rows()), K, "--pca")
    grids = rows(2 * 9, seed=1).view(2, 3, 3, D).permute(0, 3, 1, 2)
    out = projection(grids)
    assert out.shape == (2, K, 3, 3)
    torch.testing.assert_close(out[1, :, 2, 0], projection(grids[1:, :, 2, 0])[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(pca.positions(grids)[9 + 3 * 2], grids[1, :, 2, 0])


def test_a_projection_is_saved_and_loaded(tmp_path):
    projection = fit(moments(rows()), K, "--pca")
    projection.save(tmp_path / "pca.npz")
    first = (tmp_path / "pca.npz").read_bytes()
    projection.save(tmp_path / "pca.npz")
    assert (tmp_path / "pca.npz").read_bytes() == first  # no time of writing in it
    again = Projection.load(tmp_path / "pca.npz")
    assert torch.equal(again.mean, projection.mean)
    assert torch.equal(again.components, projection.components)
    assert again.share == projection.share


MEAN, COMPONENTS = np.zeros(3, np.float32), np.ones((3, 2), np.float32)
BAD_PROJECTIONS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "text": lambda path: path.write_text("mean", encoding="utf-8"),
    "objects": lambda path: np.savez(path, mean=np.array([{}], object), components=COMPONENTS),
    "names": lambda path: np.savez(path, mean=MEAN),
    "shapes": lambda path: np.savez(path, mean=MEAN, components=COMPONENTS[:2]),
    "values": lambda path: np.savez(path, mean=MEAN, components=COMPONENTS * np.nan),
}


@pytest.mark.parametrize("kind", BAD_PROJECTIONS)
def test_bad_projections_are_one_line(kind, tmp_path):
    BAD_PROJECTIONS[kind](tmp_path / "pca.npz")
    with pytest.raises(DataError) as error:
        Projection.load(tmp_path / "pca.npz")
    assert str(error.value).startswith(str(tmp_path / "pca.npz"))
    assert "\n" not in str(error.value)


# Recovery


def write(path: Path, values: torch.Tensor) -> Path:
    with h5py.File(path, "w") as file:
        file["features"] = values.numpy()
    return path


def degenerate(x: torch.Tensor, kind: str) -> torch.Tensor:
    """One column always 0, as of a dead unit, or equal to another."""
    if kind != "full":
        x[:, 3] = 0 if kind == "dead" else x[:, 4]
    return x


def files(folder: Path, n: int = N, kind: str = "full") -> tuple[dict[str, Path], dict[str, Path], Projection]:
    """Full and projected features of two splits, the basis not that of these rows."""
    basis = fit(moments(rows(seed=5)), K, "--pca")
    full, projected = {}, {}
    for seed, split in enumerate(("train", "val")):
        x = degenerate(rows(n, seed), kind)
        full[split] = write(folder / f"{split}.h5", x)
        projected[split] = write(folder / f"{split}_pca.h5", basis(x))
    return full, projected, basis


@pytest.mark.parametrize("kind", ["full", "dead", "double"])
def test_a_basis_is_recovered(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(pca, "CHUNK", 64)
    full, projected, basis = files(tmp_path, kind=kind)
    found = recover(full, projected)
    assert found.rows == N
    assert max(found.errors.values()) < 1e-5
    assert found.projection.components.abs().max() < 1.1  # where rows do not determine it, the smallest
    known = [k for k in range(D) if kind == "full" or k not in (3, 4)]
    torch.testing.assert_close(found.projection.components[known], basis.components[known], rtol=0, atol=1e-5)
    x = degenerate(rows(50, seed=7), kind)
    torch.testing.assert_close(found.projection(x), basis(x), rtol=0, atol=1e-3)


def test_too_few_rows_are_refused(tmp_path):
    full, projected, _ = files(tmp_path, D)
    with pytest.raises(DataError, match=r"train\.h5: 12 rows are too few for a basis of 12 numbers"):
        recover(full, projected)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    full, projected, _ = files(tmp_path)
    with h5py.File(projected["val"], "r+") as file:
        file["features"][7, 2] += 1
    with pytest.raises(DataError, match=r"val_pca\.h5: no projection of val\.h5 .* do not match"):
        recover(full, projected)
    write(projected["val"], torch.zeros(3, K))
    with pytest.raises(DataError, match=r"val_pca\.h5: features has 3 rows, but val\.h5 has 300"):
        recover(full, projected)
