import dataclasses


@dataclasses.dataclass
class L:
    config: object
    data_root: object
    own: bool


def locate(trained, *, typed=None, overrides=None, data_root=None, trained_root=None):
    return L(dataclasses.replace(typed or trained), data_root or trained_root, typed is None)
