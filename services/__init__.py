"""What answers requests: the prediction service and the label intake."""
