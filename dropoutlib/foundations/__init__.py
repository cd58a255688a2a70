"""Standard dropout and what goes with it: one module a method."""
