"""Feature blocks."""
