"""What a user types beside check: init, list, plan, lint."""
