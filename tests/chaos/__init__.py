"""The proof by faults that no accepted job is lost, done twice, misattributed or leaked (`make chaos`)."""
