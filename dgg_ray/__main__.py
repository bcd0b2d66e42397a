"""python -m dgg_ray"""

import sys

from dgg_ray.cli import main

sys.exit(main())
