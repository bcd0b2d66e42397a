"""Write shipped.json: the plug-ins of this package count as shipped, so their source is not part of stage
keys.

Run it after every change of a plug-in in this package, and after files were added or removed. If a change
affects training or scores, raise core/stage.FORMAT or the scorer's VERSION, or put the change into the
strategy's `effect`. Otherwise earlier stages and scores are reused as if nothing had changed.
"""

import json

from dgg_ray.core import sources

if __name__ == "__main__":
    sources.SHIPPED.write_text(json.dumps(sources.current_digests(), indent=0) + "\n", encoding="utf-8")
