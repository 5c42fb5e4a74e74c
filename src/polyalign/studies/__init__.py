"""Studies: what is learned by running methods: comparisons, claims, the laboratory."""
