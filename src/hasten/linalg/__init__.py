"""Functions of matrices, for stacks of them."""

from hasten.linalg.inverse_root import inv_root
from hasten.linalg.square_root import inv_sqrtm, sqrtm

__all__ = ["inv_root", "inv_sqrtm", "sqrtm"]
