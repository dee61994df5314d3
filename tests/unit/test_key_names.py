"""The names of the keys in Redis."""

from hypothesis import given, settings, strategies as st

from revocation_client.claims import CLAIMS, ClaimName
from revocation_service.store.key_names import Keyspace

texts = st.text(max_size=20)


@settings(deadline=None)
@given(prefix=texts, claim=st.sampled_from([*CLAIMS]), value=texts)
def test_a_key_tells_its_claim_and_value(prefix: str, claim: ClaimName, value: str) -> None:
    """The name of a key is parsed back into claim and value, under any prefix, unless it is not UTF-8."""
    keyspace = Keyspace(prefix)
    value = "" if claim == "all" else value
    key = keyspace.key(claim, value).encode("utf-8", "surrogatepass")
    try:
        key.decode()
    except UnicodeDecodeError:
        assert keyspace.record(key) is None
    else:
        assert keyspace.record(key) == (claim, value)
