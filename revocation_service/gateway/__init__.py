"""The reverse proxy before the main API, and the throttle on its logins."""
