import pytest

from eval.faces import FaceReader
from eval.gallery import Scorer
from eval.recognizers import load_recognizer


@pytest.fixture(scope="session")
def people(shared):
    """Real photos: two people, each a folder with set_A, set_B and set_C."""
    return shared / "samples" / "vggface2" / "n000050", shared / "samples" / "celebahq" / "103"


@pytest.fixture(scope="session")
def sface():
    return load_recognizer("sface")


@pytest.fixture(scope="session")
def reader(sface):
    return FaceReader(sface)


@pytest.fixture(scope="session")
def scorer():
    return Scorer()
