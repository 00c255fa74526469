"""The session manager and its parts: from a request to a recorded task."""
