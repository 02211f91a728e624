"""This computer: processors, GPUs, threads, compiler, reference load."""
