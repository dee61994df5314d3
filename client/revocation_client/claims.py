"""The claims by which tokens are revoked: one table. To add a claim, add a row."""

from typing import Final, Literal, NamedTuple

ClaimName = str
"""The name of a row of `CLAIMS`."""


class Claim(NamedTuple):
    """One claim by which tokens are revoked."""

    name: ClaimName
    """Its name in requests, answers, the feed and the keys of Redis."""
    members: tuple[str, ...]
    """The members of a token that carry it; the first that is present counts. Without any, it covers every token."""
    cutoff: Literal["never", "optional", "always"]
    """Whether its revocations have a cutoff: "always" means that it defaults to now."""
    scope: Literal["revoke", "admin"] = "revoke"
    """The scope that an API key needs to revoke by it."""


CLAIMS: Final[dict[ClaimName, Claim]] = {
    claim.name: claim
    for claim in (
        Claim("jti", ("jti",), cutoff="never"),
        Claim("sid", ("sid",), cutoff="optional"),
        Claim("sub", ("sub",), cutoff="always"),
        Claim("client_id", ("client_id", "azp"), cutoff="always", scope="admin"),
        Claim("all", (), cutoff="always", scope="admin"),
    )
}
"""In the order in which answers name them. `jti` names one token; a token without a `jti` has a computed one."""


class Claims(NamedTuple):
    """What decides whether a token is revoked: the claims that are considered, and when it was issued."""

    identifiers: tuple[tuple[ClaimName, str], ...]
    """Claim and value of each revocation that may cover the token, in the order of `CLAIMS`."""
    iat: float | None = None
    """When the token was issued, in epoch seconds; None if it does not say, or says nothing usable."""

    @classmethod
    def of(cls, iat: float | None = None, **values: str | None) -> "Claims":
        """Return claims with these values. A claim whose value is None is not considered. The value of `all` is ""."""
        given = [(name, values.pop(name)) for name in CLAIMS if name in values]
        if values:
            raise TypeError(f"not in the table of claims: {', '.join(values)}")
        return cls(tuple([(name, value) for name, value in given if value is not None]), iat)

    def value_of(self, claim: ClaimName) -> str | None:
        """Return the token's value of `claim`; None if that claim is not considered."""
        return next((value for name, value in self.identifiers if name == claim), None)

    @property
    def considered(self) -> tuple[ClaimName, ...]:
        """The names of the claims that are considered."""
        return tuple([name for name, _value in self.identifiers])
