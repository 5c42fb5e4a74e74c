"""Language-model policies over `transformers` and `peft`."""
