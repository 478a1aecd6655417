"""What a message reveals, what it can be made to do, and what it does to its receiver."""
