"""Methods for fully connected layers: one module a method."""
