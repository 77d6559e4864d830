"""The constants of the streaming problem against exact moments, computed another way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from hasten.problems.least_squares import StreamingLeastSquares
from hasten.problems.quadratic import Quadratic


def exact_second_moments(problem: StreamingLeastSquares) -> tuple[np.ndarray, np.ndarray]:
    """E Hhat^2 and E Hhat H^-1 Hhat by quadrature that is exact for fourth moments."""
    spectrum = problem.eigenvalues.numpy()
    d, batch = problem.dimension, problem.batch
    if problem.one_hot:
        trace = spectrum.sum()
        atoms = [math.sqrt(trace) * np.eye(d)[i] for i in range(d)]
        weights = list(spectrum / trace)
    else:
        nodes, node_weights = np.polynomial.hermite_e.hermegauss(3)
        node_weights = node_weights / node_weights.sum()
        choices = list(itertools.product(range(3), repeat=d))
        atoms = [nodes[list(choice)] * np.sqrt(spectrum) for choice in choices]
        weights = [float(np.prod(node_weights[list(choice)])) for choice in choices]
    plain, weighted = np.zeros((d, d)), np.zeros((d, d))
    for draw in itertools.product(range(len(atoms)), repeat=batch):
        weight = math.prod(weights[i] for i in draw)
        hessian = sum(np.outer(atoms[i], atoms[i]) for i in draw) / batch
        plain += weight * hessian @ hessian
        weighted += weight * hessian @ np.diag(1 / spectrum) @ hessian
    return plain, weighted


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize(("dimension", "batch"), [(3, 1), (2, 2), (2, 3)])
def test_constants_are_the_tightest(dimension: int, batch: int, one_hot: bool) -> None:
    problem = StreamingLeastSquares(dimension, condition=50.0, batch=batch, one_hot=one_hot)
    plain, weighted = exact_second_moments(problem)
    root = np.diag(1 / np.sqrt(problem.eigenvalues.numpy()))
    tightest_r_squared = np.linalg.eigvalsh(root @ plain @ root).max()
    tightest_kappa_tilde = np.linalg.eigvalsh(root @ weighted @ root).max()
    assert problem.r_squared == pytest.approx(tightest_r_squared, rel=1e-12)
    assert problem.kappa_tilde == pytest.approx(tightest_kappa_tilde, rel=1e-12)
    assert problem.smoothness * problem.growth == pytest.approx(problem.r_squared)
    assert problem.kappa == pytest.approx(problem.r_squared * 50.0)


def test_published_constants() -> None:
    assert StreamingLeastSquares(20, 1e3).r_squared == pytest.approx(5.28, abs=5e-3)
    assert StreamingLeastSquares(20, 1e4).r_squared == pytest.approx(4.60, abs=5e-3)
    assert StreamingLeastSquares(20, 1e3, batch=8).r_squared == pytest.approx(1.53, abs=5e-3)
    assert StreamingLeastSquares(20, 1e3, batch=64).kappa_tilde == pytest.approx(1.33, abs=5e-3)


@pytest.mark.parametrize("one_hot", [False, True])
def test_samples_have_the_stated_covariance(one_hot: bool) -> None:
    problem = StreamingLeastSquares(4, 10.0, batch=5, noise=0.3, one_hot=one_hot, seed=3)
    features, labels = problem.sample(None, 40_000)
    assert features.shape == (40_000, 5, 4)
    assert labels.shape == (40_000, 5)
    covariance = torch.einsum("sbi,sbj->ij", features, features) / features[..., 0].numel()
    torch.testing.assert_close(covariance, torch.diag(problem.eigenvalues), atol=0.02, rtol=0)
    residual = labels - features @ problem.solution
    assert float(residual.std()) == pytest.approx(0.3, rel=0.02)


def test_gradient_is_the_derivative_of_the_loss_with_leading_axes() -> None:
    problem = StreamingLeastSquares(5, 10.0, batch=3, noise=0.1)
    features, labels = problem.sample(None, 2, 1)
    w = torch.randn(2, 7, 5, dtype=torch.float64, requires_grad=True)
    problem.loss(w, features, labels).sum().backward()
    torch.testing.assert_close(w.grad, problem.gradient(w.detach(), features, labels))
    assert problem.excess_risk(w).shape == (2, 7)


def test_every_direction_carries_the_same_risk() -> None:
    problem = StreamingLeastSquares(20, 1e4)
    assert float(problem.excess_risk(problem.start())) == pytest.approx(10.0, rel=1e-12)
    for i in (0, 10, 19):
        without = torch.zeros(20, dtype=torch.float64)
        without[i] = problem.solution[i]
        assert float(problem.excess_risk(without)) == pytest.approx(9.5, rel=1e-12)
    assert float(problem.excess_risk(problem.solution)) == 0.0


def test_generators_reproduce() -> None:
    problem = StreamingLeastSquares(3)
    first = problem.sample(torch.Generator().manual_seed(7))
    second = problem.sample(torch.Generator().manual_seed(7))
    assert torch.equal(first[0], second[0])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"dimension": 0}, "dimension=0"),
        ({"batch": 1.5}, "batch=1.5"),
        ({"condition": 0.5}, "condition=0.5"),
        ({"condition": float("nan")}, "condition=nan"),
        ({"noise": -1.0}, "noise=-1.0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        StreamingLeastSquares(**arguments)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("rotate", [False, True])
def test_quadratic_has_the_chosen_spectrum(rotate: bool) -> None:
    spectrum = [2.0, 0.5, 0.01]
    problem = Quadratic(spectrum, seed=4, rotate=rotate)
    found = torch.linalg.eigvalsh(problem.hessian)
    torch.testing.assert_close(found, torch.tensor(sorted(spectrum), dtype=torch.float64))
    x = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    problem.value(x).sum().backward()
    torch.testing.assert_close(x.grad, problem.gradient(x.detach()))
    assert problem.condition == pytest.approx(200.0)
    assert float(problem.value(problem.minimiser)) == problem.minimum


@pytest.mark.parametrize("spectrum", [[], [0.0, 0.0], [1.0, -1.0], [float("inf")], [[1.0]]])
def test_quadratic_rejects_bad_spectra(spectrum: list[float]) -> None:
    with pytest.raises(ValueError, match="eigenvalues"):
        Quadratic(spectrum)
