"""A server to try any-time generation on: requests with a deadline, sampled together, as well as the time allows."""

from ._answer import Answer as Answer
from ._application import make_application as make_application
from ._refusals import Draining as Draining
from ._refusals import InvalidRequest as InvalidRequest
from ._refusals import Overloaded as Overloaded
from ._refusals import SamplingFailed as SamplingFailed
from ._request import Offer as Offer
from ._request import SampleRequest as SampleRequest
from ._request import Way as Way
from ._request import read_request as read_request
from ._server import Server as Server
from ._server import bind as bind
from ._service import Service as Service
from ._service import make_service as make_service
