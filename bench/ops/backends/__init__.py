"""Backends of the selective scan: reference, C++ on the CPU, Triton, mamba-ssm."""
