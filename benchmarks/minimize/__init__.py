"""`hasten.minimize` against SciPy and pytorch-minimize: see `python -m benchmarks.minimize --help`."""
