"""What scripts/gpu.sh runs: the kernels on the GPU that is there, checked and measured. Each step is a program of its own that
prints a line of JSON a finding, since a device is opened once and a fault on it ends everything in its process; __main__.py
starts them, keeps the time and prints the table. Run with a folder that holds the package genkit on PYTHONPATH, and tests/."""
