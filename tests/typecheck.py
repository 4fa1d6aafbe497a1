"""The runtime type checker of the test suite."""

from beartype import BeartypeConf
from beartype import beartype as _beartype

# As in every type checker, an int may be passed where a float is asked for.
beartype = _beartype(conf=BeartypeConf(is_pep484_tower=True))
