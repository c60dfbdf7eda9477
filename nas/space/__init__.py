"""Values only, no torch: what may be searched, and the front of what was found."""
