"""Real servers for tests, the demo and benchmarks: throwaway, on ports of their own, stopped by process id."""
