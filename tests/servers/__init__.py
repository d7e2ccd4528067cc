"""Real servers for tests, the demo and benchmarks: throwaway, on their own ports, stopped by process id."""
