"""One file for each published claim that the library reproduces, or fails to."""
