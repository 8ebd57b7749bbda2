"""HTTP only: parse, call storage, ring the bell, render. Knows nothing of torch and of how tasks run."""
