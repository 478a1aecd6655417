"""`report.html`: what a run was, what it reached and what it wrote, in one file to look at."""
