"""Environments: what acts back. Thin protocols over Gymnasium's, and exact worlds to act in."""
