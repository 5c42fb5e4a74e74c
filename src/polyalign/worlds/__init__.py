"""Worlds: small exact problems in which the optimum of a method is known in closed form."""
