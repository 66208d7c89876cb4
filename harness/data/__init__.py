"""Documents: reading, encoding to token ids, aligned windows, calibration documents, contamination."""
