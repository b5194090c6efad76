"""The edges: HTTP, Ray Serve, telemetry, the command line."""
