"""Measuring genkit: beside the limits of the machine, and beside the engines it competes with (peers/)."""
