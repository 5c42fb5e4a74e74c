"""Measurements that are too long for tests; each prints its machine, versions, sizes and spread."""
