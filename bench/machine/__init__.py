"""This computer: processors, GPUs, threads, compiler."""
