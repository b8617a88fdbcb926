"""Installs a pinned pip into the environment this runs in, where Python came without one.

A wheel is an archive that Python can run from: pip installs itself.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request

INDEX = "https://pypi.org/simple/pip/"
WHEEL = "pip-26.3-py3-none-any.whl"
SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"


def main():
    with urllib.request.urlopen(INDEX, timeout=60) as page:
        html = page.read().decode()
    match = re.search(r'href="([^"#]*/' + re.escape(WHEEL) + ")", html)
    if not match:
        sys.exit(f"{INDEX} does not list {WHEEL}")
    url = urllib.parse.urljoin(INDEX, match.group(1))
    with urllib.request.urlopen(url, timeout=60) as response:
        wheel = response.read()
    if hashlib.sha256(wheel).hexdigest() != SHA256:
        sys.exit(f"{url} is not the file that was pinned")
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, WHEEL)
        with open(path, "wb") as file:
            file.write(wheel)
        run = [sys.executable, f"{path}/pip", "install", "--quiet", "--no-index", path]
        subprocess.run(run, check=True)


main()
