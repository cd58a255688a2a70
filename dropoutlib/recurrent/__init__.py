"""Methods for recurrent networks: one module a method, all around one engine."""
