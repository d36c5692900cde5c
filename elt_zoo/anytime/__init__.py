"""Sampling by the clock: how long a generator takes, how good its samples are, the best loops for a given time, and
exits that keep a promise.
"""

from ._allocate import Allocations as Allocations
from ._calibrate import ExitCalibration as ExitCalibration
from ._calibrate import Risk as Risk
from ._calibrate import ThresholdTest as ThresholdTest
from ._calibrate import calibrate_exit as calibrate_exit
from ._calibrate import changed_class as changed_class
from ._calibrate import feature_change as feature_change
from ._calibrate import risk_p_value as risk_p_value
from ._calibrate import used_loops as used_loops
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
