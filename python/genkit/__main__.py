"""`python -m genkit` is the command `genkit`."""

from genkit.cli import main

main()
