"""The engine: scores, micro-batches, one normaliser, checkpoints. It knows only policies."""
