"""Methods for residual networks: one module a method."""
