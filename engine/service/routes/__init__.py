"""The handlers, by topic; ``table`` lists all routes."""
