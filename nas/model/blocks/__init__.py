"""The blocks of a detector, one file a family."""
