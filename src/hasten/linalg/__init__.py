"""Functions of matrices, for stacks of them."""

from hasten.linalg.inverse_root import inv_root

__all__ = ["inv_root"]
