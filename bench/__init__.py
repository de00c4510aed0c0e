"""What is measured and how; `python -m bench` adds a dated section to RESULTS.md."""
