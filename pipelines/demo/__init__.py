"""The main job on real flights: the whole loop on one machine, time compressed."""
