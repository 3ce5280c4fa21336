"""The console: pages of the gateway on which people see and control what runs.

Read `routes.py` first, then `visit.py`. A page is a function from a `Visit` to a `Page`; it runs in
a thread, and reads Redis by the same calls as the command line. Everything that a page can change,
a command can change too.
"""

from .routes import console_parts

__all__ = ["console_parts"]
