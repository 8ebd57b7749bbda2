"""What is found out about a model when it is loaded: what it can do, what it promises, what it costs."""
