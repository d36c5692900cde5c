"""Figures: pictures of samples, films of clips, and plots of what was measured."""

from ._grids import save_clip_grid as save_clip_grid
from ._grids import save_grid as save_grid
from ._grids import save_sample_grid as save_sample_grid
from ._losses import Curve as Curve
from ._losses import plot_losses as plot_losses
from ._pictures import png_bytes as png_bytes
from ._pictures import save_gif as save_gif
from ._pictures import save_png as save_png
from ._pictures import save_reconstructions as save_reconstructions
from ._pictures import tile as tile
from ._plots import plot_exits as plot_exits
from ._plots import plot_pareto as plot_pareto
from ._plots import plot_plans as plot_plans
from ._plots import plot_update_norms as plot_update_norms
from ._quality import plot_quality as plot_quality
