"""Download one file over HTTP, going on where an earlier attempt stopped.

In: a URL and the path of the partial file. Out: the partial file, complete; who calls checks it and gives it its name.
"""

import http.client
import math
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError
from pipeline.progress import track

# What is read, written and counted at a time; the bar counts in this unit.
_CHUNK = 2**20

# A server that says nothing for this long is taken for gone. Archives are packed on demand, so it may well pause.
_SILENCE_S = 60.0


# A connection that ended while its encryption was being agreed on. Any other error of TLS comes again every time.
_BROKEN_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class _BrokenTransferError(Exception):
    """The transfer stopped for a reason that may pass."""


def download_file(url: str, partial: Path, attempts: int, pause_s: float) -> None:
    """Bring the file at `url` to `partial`, resuming what is there.

    A broken transfer is taken up again, up to `attempts` times in a row without a byte gained. A server that cannot
    resume starts over.

    Args:
        url: http or https.
        partial: where the bytes go; what it holds is taken for the beginning of the same file.
        attempts: how many fruitless tries end the download.
        pause_s: the wait after the first fruitless try, doubled after each further one.

    Raises:
        InputError: the server refuses, its certificate does not verify, the connection keeps breaking, or the disk
            does not take the bytes.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    best, fruitless = _size_of(partial), 0
    while True:
        try:
            return _continue_download(url, partial)
        except _BrokenTransferError as error:
            cause = error
        except OSError as error:
            raise InputError(f"{partial}: cannot be written ({error.strerror}); make room and fetch again") from error
        fruitless = 0 if _size_of(partial) > best else fruitless + 1
        best = max(best, _size_of(partial))
        if fruitless == attempts:
            raise InputError(
                f"{url}: {cause}, {attempts} times in a row; fetch again later: the {best} bytes there are kept"
            ) from cause
        time.sleep(pause_s * 2 ** max(fruitless - 1, 0))


def _continue_download(url: str, partial: Path) -> None:
    """Append to `partial` what the server has beyond it.

    Source: RFC 9110, sections 14.2 (Range), 14.4 (Content-Range) and 15.5.17 (status 416).
    """
    have = _size_of(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_SILENCE_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return None  # nothing lies beyond what is there: it is the whole file
            return _start_over(partial, "the partial file is longer than the server's")
        if error.code in (408, 429) or error.code >= 500:
            raise _BrokenTransferError(f"the server answers {error.code} {error.reason}") from error
        raise InputError(
            f"{url}: the server answers {error.code} {error.reason}; check the address in a browser, or fetch from "
            "another source"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError) and not isinstance(reason, _BROKEN_TLS):
            raise InputError(f"{url}: {_explain_tls(reason)}") from error
        raise _BrokenTransferError(f"no connection ({reason})") from error
    with response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            return _start_over(partial, "the server sent another range than was asked for")
        length = response.headers.get("Content-Length")
        chunks = None if length is None else math.ceil(int(length) / _CHUNK)
        with partial.open("ab" if resumed else "wb") as file:
            for chunk in track(_read_chunks(response), url.rsplit("/", 1)[-1], total=chunks, unit="MiB"):
                file.write(chunk)
    got = _size_of(partial) - (have if resumed else 0)
    if length is not None and got != int(length):
        raise _BrokenTransferError(f"the connection broke after {got} of {length} bytes")


def _explain_tls(error: ssl.SSLError) -> str:
    """Return what keeps an encrypted connection from being made, and the cure."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return f"no encrypted connection ({error}); check the address, and whether a proxy is in the way"
    return (
        f"the server's certificate does not verify ({error.verify_message}), so nothing is taken from it; on a Mac run "
        "`Install Certificates.command` of Python's folder, behind a proxy set SSL_CERT_FILE to a file that has the "
        "proxy's certificate, and see that the clock is right"
    )


def _start_over(partial: Path, cause: str) -> None:
    partial.unlink()
    raise _BrokenTransferError(cause)


def _read_chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read(_CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenTransferError(f"the connection broke ({error})") from error


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
