"""What the application answers, a file per resource."""
