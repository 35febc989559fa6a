"""The beginning of a pipeline: posts what it has found to the next step by its name.

    scrape.py NEXT
"""

import sys
from urllib.request import urlopen

FOUND = "agents call each\nother by hostname\nwherever they run\n"

with urlopen(sys.argv[1], data=FOUND.encode()) as answer:
    print(answer.read().decode(), end="")
