"""The parts of a run: pairs are made, observed and measured."""
