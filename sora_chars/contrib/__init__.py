"""Integrations with other packages, one module each. Nothing else imports them."""
