"""HTTP only: parse, call storage, dispatch, render. It knows nothing of torch or of how tasks run."""
