"""Step time and peak memory of optimizers, measured in interleaved rounds."""
