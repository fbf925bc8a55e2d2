"""Compiled from protos/ by `make proto`. Not edited by hand; not linted."""
