"""A script or a notebook's cell sees what it writes itself, and nothing that libraries write as they load."""

import subprocess
import sys
from pathlib import Path

import pytest

import sd_tf

DRAWS = """
model = sd_tf.load("fashion-mnist-small")
print("mine", file=sys.stderr)
assert model.generate("a red dress", steps=1, engine="tensorflow").shape == (1, 32, 32, 3)
"""
MAKES = """
data = sd_tf.open_data(np.zeros((8, 32, 32, 3), "uint8"), captions=["a red dress"] * 8)
print("mine", file=sys.stderr)
sd_tf.LatentDiffusion.from_preset("fashion-mnist-small", data).summary()
"""


@pytest.mark.parametrize("script", [DRAWS, MAKES], ids=["draws", "makes"])
def test_a_script_writes_what_it_writes_itself(script):
    whole = f"import sys\nimport numpy as np\nimport sd_tf\n{script}"
    root = Path(sd_tf.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", whole], cwd=root, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "mine\n")
