"""How a step is taken: optimizers by name, learning-rate schedules, clipping."""
