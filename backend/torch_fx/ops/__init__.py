"""The lowerings, by family; importing this package fills the table."""

from __future__ import annotations

from . import attention as attention
from . import audio as audio
from . import blockwise as blockwise
from . import casting as casting
from . import convolution as convolution
from . import detection as detection
from . import elementwise as elementwise
from . import experts as experts
from . import grouped_query as grouped_query
from . import indexing as indexing
from . import logic as logic
from . import loss as loss
from . import matmul as matmul
from . import normalization as normalization
from . import pooling as pooling
from . import quantization as quantization
from . import recurrent as recurrent
from . import reduction as reduction
from . import resampling as resampling
from . import rotary as rotary
from . import scatter as scatter
from . import shape as shape
