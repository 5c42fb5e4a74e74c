"""What a policy stays close to: named references, and the cache of their log-probabilities."""
