"""A study's run counts as finished though an image of its data was replaced by another one of the same length."""
from _common import *
from crlsr.core import share_path
from crlsr.studies.execution import run_digest as fingerprint
os.mkdir("d"); nb = share_path("nbs/reproduce/train.ipynb")
picture(seed=1).save("d/a.bmp"); before = fingerprint(nb, {}, ["d"])
picture(seed=2).save("d/a.bmp"); after = fingerprint(nb, {}, ["d"])
end(["fingerprint is equal for other pixels (bmp, uncompressed tiff, ppm: length depends on the size alone)"] if before == after else [])
