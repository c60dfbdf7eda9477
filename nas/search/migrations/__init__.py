"""Alembic environment of our own tables."""
