"""Methods that treat noise as a posterior: what a network does not know, and which of its weights it can lose."""
