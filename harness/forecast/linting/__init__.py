"""What is wrong with a gate before it judges anything: rules that never pass, never fail, or cannot tell."""
