"""Who says which behaviour is better: functions, reward models, verifiers."""
