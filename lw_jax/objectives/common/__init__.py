"""What several objectives use: the context that they see, heads, distances, what is compared."""
