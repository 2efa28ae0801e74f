"""What the train door imports before it has anything to do."""

import subprocess
import sys


def test_starting_imports_no_library_that_it_can_do_without():
    """PyTorch alone takes two seconds; tensorboardX imports it wherever it is installed."""
    script = "import sys, vljax.train; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "jax" in loaded
    unwanted = {"torch", "tensorboardX", "transformers", "tensorflow", "tensorflow_datasets"}
    assert not unwanted & set(loaded)
