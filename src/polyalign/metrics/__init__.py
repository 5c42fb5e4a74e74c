"""Pure functions from numbers to estimates, each with its uncertainty."""
