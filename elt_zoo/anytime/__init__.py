"""Sampling by the clock: how long a generator takes, how good its samples are, and the best loops for a given time."""

from ._allocate import Allocations as Allocations
from ._conditions import Conditions as Conditions
from ._data import Distance as Distance
from ._data import PlanningData as PlanningData
from ._data import digits_data as digits_data
from ._latency import Latency as Latency
from ._latency import Timing as Timing
from ._latency import fit_latency as fit_latency
from ._latency import measure_latency as measure_latency
from ._plan import Plan as Plan
from ._plan import loops_text as loops_text
from ._plan import quality_text as quality_text
from ._planner import Planner as Planner
from ._planner import load_planner as load_planner
from ._planner import make_planner as make_planner
from ._planner import plan as plan
from ._quality import Quality as Quality
from ._quality import StepQuality as StepQuality
from ._quality import measure_quality as measure_quality
