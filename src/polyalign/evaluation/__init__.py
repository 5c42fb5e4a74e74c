"""What a policy can do and what went wrong: protocols, diagnostics and advice."""
