"""The parts of a run: make the variants, observe them next to the reference, and measure."""
