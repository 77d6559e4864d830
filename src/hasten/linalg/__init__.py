"""Functions of matrices, for stacks of them."""
