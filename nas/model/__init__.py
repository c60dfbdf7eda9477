"""Architecture to torch module: blocks, the detector, and the supernet that shares its weights."""
