"""What a model costs: parameters, operations and memory before it is built, and time per sample when it runs."""

from ._collectives import Collective as Collective
from ._compile import CompiledCost as CompiledCost
from ._compile import DoesNotFit as DoesNotFit
from ._compile import compile_sampler as compile_sampler
from ._compile import compile_step as compile_step
from ._count import Costs as Costs
from ._environment import environment as environment
from ._peak import peak_flops as peak_flops
from ._profile import FLOPS as FLOPS
from ._profile import Profile as Profile
from ._profile import profile as profile
from ._sample import SampleCompute as SampleCompute
from ._sample import SampleTime as SampleTime
from ._sample import sample_compute as sample_compute
from ._sample import time_samples as time_samples
from ._topology import LOCAL as LOCAL
from ._topology import topology_devices as topology_devices
from ._xla import xla_flops as xla_flops
from ._xla import xla_forward_flops as xla_forward_flops
