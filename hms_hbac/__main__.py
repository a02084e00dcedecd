"""`python -m hms_hbac`: the command line, where the script `hms-hbac` is not on the path."""
from hms_hbac.cli import app

app()
