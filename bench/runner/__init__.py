"""A Plan becomes Records: order, leases, timing lock, jobs, progress, worker."""
