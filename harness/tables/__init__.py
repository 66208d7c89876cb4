"""Tables on disk: ``store`` writes and reads them, ``journal`` makes a killed run go on where it was."""
