"""Let Hydra find the user's own choices: ``./configs`` comes before the configs of headcount."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from headcount.cli.choices import config_dirs


class OwnConfigs(SearchPathPlugin):
    """Puts ``./configs`` before the folder that Hydra was started with."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra each time it is initialized."""
        for folder in config_dirs()[:-1]:
            search_path.prepend("headcount", f"file://{folder}", anchor="main")


def search_own_configs() -> None:
    """Make Hydra search ``./configs`` from now on; a second call changes nothing."""
    Plugins.instance().register(OwnConfigs)
