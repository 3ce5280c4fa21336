"""`Viewer`: who looks at the console, and what the API key allows."""

from __future__ import annotations

from dataclasses import dataclass

from batchmill.producer.store.api_keys import ApiKey


@dataclass(frozen=True, slots=True)
class Viewer:
    """The holder of an API key."""

    key: ApiKey
    #: The token that every form of this session carries.
    form_token: str = ""
    #: There are no keys: every user of this machine is an operator.
    is_open: bool = False

    @property
    def is_operator(self) -> bool:
        """Whether the viewer sees all tenants, and the workers, queues and pauses."""
        return self.key.has_scope("operator")

    @property
    def tenant(self) -> str | None:
        """The only tenant that the viewer sees; None for all."""
        return None if self.is_operator else self.key.tenant

    @property
    def sees_texts(self) -> bool:
        """Whether prompts and outputs are shown."""
        return self.key.has_scope("texts")

    @property
    def may_change_jobs(self) -> bool:
        """Whether the viewer may cancel and retry jobs and batches."""
        return self.is_operator or self.key.has_scope("submit")

    @property
    def may_administer(self) -> bool:
        """Whether the viewer may retry dead letters and change webhooks."""
        return self.is_operator or self.key.has_scope("admin")

    def sees(self, tenant: str | None) -> bool:
        """Return whether the viewer sees what belongs to a tenant; None is an unknown one."""
        return self.is_operator or (tenant is not None and tenant == self.key.tenant)


def may_sign_in(key: ApiKey) -> bool:
    """Return whether a key opens the console."""
    return key.has_scope("read") or key.has_scope("operator")
