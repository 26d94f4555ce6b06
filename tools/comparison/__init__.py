"""mpqc compare: methods against each other at equal bytes, through one quantizer."""

from .methods import split_list as split_list
from .run import Compared as Compared
from .run import compare as compare
