"""Methods for convolutional networks: one module a method."""
