"""A run as one HTML file that needs nothing else: no server, no network, nothing to install."""

from tilewright.inspect.report.page import write_report

__all__ = ["write_report"]
