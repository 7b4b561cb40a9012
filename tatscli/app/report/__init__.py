"""The report: runs and samples on one page."""
