"""The contract of solvers: problem, options, outcome, status and solution."""
