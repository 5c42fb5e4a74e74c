"""The commands people type: parse, call, print."""
