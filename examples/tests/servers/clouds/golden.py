"""Computes the signatures of golden requests again, with the code of vendors and of botocore.

    golden.py FOLDER

Prints how many agree, of which files; ends with an error that names each that does not.
"""

import datetime
import pathlib
import sys
import urllib.parse
from types import SimpleNamespace

from signatures import Keys, signature_of

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc).timestamp()


def requests_of(text):
    """Of one file: titles, and the requests below them."""
    for page in text.split("### ")[1:]:
        title, _, rest = page.partition("\n")
        block = rest.strip("\n").split("\n\n")
        while block:
            head = block.pop(0).split("\n")
            if head[0].startswith("not sent") or not head[0]:
                continue
            method, target = head[0].split(" ")
            headers = dict(line.split(": ", 1) if ": " in line else (line.rstrip(":"), "") for line in head[1:])
            body = block.pop(0) if int(headers.get("content-length", 0)) > 0 else ""
            yield title, method, target, headers, body.rstrip("\n").encode()


wrong, checked = [], {}
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.txt")):
    text = file.read_text()
    region = text.split("\n")[0].rsplit(" ", 1)[1]
    keys = Keys("AKIDGOLDEN", "golden/secret+key", region, lambda: NOW)
    for title, method, target, headers, body in requests_of(text):
        path, _, query = target.partition("?")
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True)
        key = urllib.parse.unquote(path[1:])
        request = SimpleNamespace(
            method=method, url=f"http://{headers['host']}{target}", bucket="bucket-1250000000", key=key, pairs=pairs, headers=headers, body=body
        )
        given, again = signature_of(file.stem)(request, keys)
        checked[file.stem] = checked.get(file.stem, 0) + 1
        if given != again:
            wrong.append(f"{file.name}: {title}: {given}, and {again} by the vendor's code")
print(", ".join(f"{name} {count}" for name, count in checked.items()))
if wrong:
    sys.exit("\n".join(wrong))
