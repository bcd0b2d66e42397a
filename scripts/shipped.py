"""Declare the plug-ins to be shipped as they are: their keys say nothing of their source from then on.

To be run after every change of a plug-in in this package, and after files came or went. Where a change moves
what is learned or scored, raise core/stage.FORMAT, or a scorer's VERSION, or say it in the strategy's `effect`:
else stages and scores of before are taken for those of now.
"""

import json

from dgg_ray.core import sources

if __name__ == "__main__":
    sources.SHIPPED.write_text(json.dumps(sources.current_digests(), indent=0) + "\n", encoding="utf-8")
