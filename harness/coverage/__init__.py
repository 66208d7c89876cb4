"""What no document exercises and what files say of themselves: untouched parameters, NaN anywhere, layers left plain."""
