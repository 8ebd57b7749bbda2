"""What every request and answer of the web passes."""
