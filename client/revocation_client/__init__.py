"""The application's side of the revocation service: the rule, the merge and the wire forms."""

from revocation_client.model import ClaimName, Claims, Revocation, covers, first_covering, merge

__all__ = ["ClaimName", "Claims", "Revocation", "covers", "first_covering", "merge"]
