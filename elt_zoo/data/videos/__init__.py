"""Videos in files: reading clips, sources for folders and UCF-101, and writing."""

from ._folder import video_folder as video_folder
from ._source import VideoSource as VideoSource
from ._transform import ClipTransform as ClipTransform
from ._ucf101 import ucf101 as ucf101
from ._write import write_ucf101 as write_ucf101
from ._write import write_video as write_video
