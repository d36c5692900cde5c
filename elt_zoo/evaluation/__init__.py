"""Evaluation: grids of ways to sample with what they cost, reports of runs and of loops, and the cards of protocols."""

from ._cells import Cell as Cell
from ._cells import CellStore as CellStore
from ._cells import grid as grid
from ._evaluator import DIGITS_DISTANCE as DIGITS_DISTANCE
from ._evaluator import Evaluator as Evaluator
from ._evaluator import EvaluatorOptions as EvaluatorOptions
from ._evaluator import make_evaluator as make_evaluator
from ._grid import evaluate_grid as evaluate_grid
from ._grid import protocol_of as protocol_of
from ._loop_report import heldout_task as heldout_task
from ._loop_report import report_loops as report_loops
from ._measured import Measured as Measured
from ._measured import gather_measured as gather_measured
from ._run_report import Quality as Quality
from ._run_report import ReportOptions as ReportOptions
from ._run_report import digits_quality as digits_quality
from ._run_report import report_run as report_run
from ._run_report import sample_exits as sample_exits
from ._run_report import watch as watch
from ._samples import CellSampler as CellSampler
from ._samples import SamplePlan as SamplePlan
from ._samples import Samples as Samples
from ._tokenizer_report import report_tokenizer as report_tokenizer
