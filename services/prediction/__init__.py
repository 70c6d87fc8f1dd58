"""The prediction service: typed requests, the rollout plan's split, scores, and a durable record of every answer."""
