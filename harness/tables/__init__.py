"""Tables on disk: ``store`` writes and reads them, ``journal`` lets a killed run resume where it stopped."""
