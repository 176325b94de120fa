import pytest

from experiments.setup.building import Refused
from experiments.setup.settings import shard_of

NAMES = ["a", "b", "c", "d", "e"]


def test_shards_share_all_identities_out():
    assert shard_of(NAMES, None) == NAMES
    assert shard_of(NAMES, "0/1") == NAMES
    shards = [shard_of(NAMES, f"{k}/3") for k in range(3)]
    assert shards == [["a", "d"], ["b", "e"], ["c"]]
    assert shard_of(NAMES, "7/8") == []


@pytest.mark.parametrize("shard", ["3/3", "1", 1, "-1/2", "1/0", "a/b", ""])
def test_what_is_no_shard_is_refused(shard):
    with pytest.raises(Refused, match=r"dataset\.shard=.*expected k/n"):
        shard_of(NAMES, shard)
