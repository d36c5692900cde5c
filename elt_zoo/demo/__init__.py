"""A page in the browser to play with a generator: sliders for loops and steps, and views of what the loops do."""

from ._loop_views import LoopViews as LoopViews
from ._loop_views import loop_views as loop_views
from ._page import make_page as make_page
from ._page import serve as serve
from ._studio import Choice as Choice
from ._studio import Studio as Studio
