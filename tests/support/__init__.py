"""What tests share: tiny models, served hubs and W&B, faults, and waiting for processes."""
