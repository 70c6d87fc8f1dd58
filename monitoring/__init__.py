"""What watches: drift and performance jobs, reports, metrics and alert rules."""
