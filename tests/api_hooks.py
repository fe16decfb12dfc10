"""For Schemathesis: what the description calls binary is a photo, which no schema can say. (Of bytes that are no photo, test_serve.py sends hundreds.)"""
import random

import schemathesis
from hypothesis import strategies as st

from hostile import sound

schemathesis.openapi.format("binary", st.sampled_from(list(sound(random.Random(1)).values())))
