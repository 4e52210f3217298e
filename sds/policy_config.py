"""What the agent's configuration says of policies that are pushed to proxies."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ca.runtime.config import StrictModel
from ca.runtime.decision_log_config import DecisionLogConfig
from sds.providers import ProviderConfig


class PolicyConfig(StrictModel):
    """What proxies of this node are given, what they do without the agent, and what is kept of their decisions."""

    cut_off: Literal["keep", "deny"] = Field(
        default="keep",
        description="What a proxy does that hears nothing of this agent for `ttl_seconds`, because the agent is down "
        "or cannot be reached: `keep` goes by the last policies that it was given, for as long as it runs; `deny` "
        "refuses everything until the agent is back.",
    )
    ttl_seconds: float = Field(
        default=300.0,
        ge=3,
        le=86_400,
        description="With `cut_off: deny`, how long a proxy goes by policies without a word from the agent, which "
        "sends three in that time. An agent that restarts must be back within it.",
    )
    decision_log: DecisionLogConfig = Field(default=DecisionLogConfig(), description="What is kept of decisions.")
    providers: dict[str, ProviderConfig] = Field(
        default={},
        max_length=64,
        description="Who is asked besides where a CUSTOM policy names it. A provider that is not here has not agreed.",
    )

    @property
    def lasting_seconds(self) -> float:
        """How long policies last without a heartbeat; 0 for ever."""
        return self.ttl_seconds if self.cut_off == "deny" else 0.0
