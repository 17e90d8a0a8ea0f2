"""What zoo does on one GPU: correctness, host waits, launches, graphs, speed and memory, in at most six minutes."""
