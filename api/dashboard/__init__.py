"""The dashboard: what an operator watches and decides on, and what a customer sees of its own jobs.

Pages are rendered on the server; HTMX renews parts of them, uPlot draws the curves, and a page works
without either. It is an application of its own, mounted on the API's: its cookies, its headers and its
error pages never reach the API. It decides nothing: what it shows is read through `models`, and what it
does goes through the same services as the API.
"""

from __future__ import annotations

from api.dashboard.app import mount_dashboard

__all__ = ["mount_dashboard"]
