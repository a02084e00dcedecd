"""Views: what a network sees of a batch. `VIEWS` holds every part and every named picture."""
from .algebra import Panels, View
from .raw import WINNER_VIEWS
from .systems import VIEWS, view

__all__ = ["VIEWS", "WINNER_VIEWS", "Panels", "View", "view"]
