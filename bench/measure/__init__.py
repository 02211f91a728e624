"""Measuring: classification metrics, FLOPs, throughput, latency, memory, energy."""
