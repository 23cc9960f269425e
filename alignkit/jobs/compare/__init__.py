"""`compare`: solvers, chains and seeds side by side on one pair of networks."""
