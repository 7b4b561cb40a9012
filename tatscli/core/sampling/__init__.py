"""Token filters, cached generation and sliding windows."""
