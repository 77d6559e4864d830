"""Measurements: the speed of a step, and published claims reproduced."""
