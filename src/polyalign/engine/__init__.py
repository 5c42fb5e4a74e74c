"""The engine: scores, micro-batches, one normaliser, modules, checkpoints. It knows only policies."""
