"""One vendor SDK per module; adapters take plain values and speak the platform's errors."""
