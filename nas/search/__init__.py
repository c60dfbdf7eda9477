"""Ask, screen, evaluate, tell."""
