"""A sketch whose matrices are written down, and a dense one: independent of every family of the library."""

from dataclasses import dataclass

import torch

from hasten.sketches import Draw, Sketch


class Dense(Draw):
    """A draw that is a matrix."""

    def __init__(self, matrix, short_step=None):
        self.matrix = matrix
        self.dimension, self.rank = matrix.shape
        self.short_step = short_step

    def project(self, g):
        return self.matrix.to(g.dtype).T @ g.reshape(-1)

    def lift(self, s, out=None):
        lifted = self.matrix.to(s.dtype) @ s
        return lifted if out is None else out.copy_(lifted.view_as(out))

    def _project(self, g, dtype):
        raise NotImplementedError

    def _lift(self, s, out):
        raise NotImplementedError

    def _columns(self, start, stop, dtype, device):
        return self.matrix.T[start:stop].to(device, dtype)


@dataclass(frozen=True)
class Given(Sketch):
    """The matrix of step k is ``matrices[k]``; its constants are written down too."""

    matrices: tuple = ()
    inflation: float = 1.0
    smoothness: float = 1.0
    short_steps: tuple | None = None

    def draw(self, dimension, *, seed=0, step=0, block=0):
        step = step % len(self.matrices)
        return Dense(self.matrices[step], None if self.short_steps is None else self.short_steps[step])

    def nu(self, dimension):
        return self.inflation

    def expected_smoothness(self, smoothness):
        return self.smoothness

    def _draw(self, dimension, key):
        raise NotImplementedError

    def smoothed(self, L):
        raise NotImplementedError

    def smoothness_bound(self, curvature, minus=0.0):
        raise NotImplementedError


def given(matrices, nu=1.0, smoothness=1.0, short_steps=None):
    matrices = tuple(torch.as_tensor(m, dtype=torch.float64) for m in matrices)
    return Given(
        rank=matrices[0].shape[1],
        matrices=matrices,
        inflation=nu,
        smoothness=smoothness,
        short_steps=short_steps,
    )
