"""Whether the hub of pretrained weights can be reached."""

import queue
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

_TIMEOUT_SECONDS = 8


@contextmanager
def quick_hub() -> Iterator[None]:
    """Let the hub read only its cache if it cannot be reached; by itself it repeats every request for half a minute."""
    from huggingface_hub import constants  # late: not every model needs it

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(url: str) -> bool:
    """Whether a server answers in time, directly or by a proxy; looking up its name may take longer by itself."""
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(_answers(url)), daemon=True).start()
    try:
        return answers.get(timeout=_TIMEOUT_SECONDS)
    except queue.Empty:
        return False


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the hub may know other certificates
    except Exception:  # OSError, http.client.HTTPException
        return False
