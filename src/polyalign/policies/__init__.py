"""Policies: language models, controllers, tables: anything that makes a sequence of decisions."""
