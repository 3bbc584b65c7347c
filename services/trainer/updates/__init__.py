"""Stage 3: how π_i is made of π_{i-1}. One module a way, all behind `Update`."""

from agentprm.config import PolicyUpdate
from services.trainer.updates.base import Reports, Update, Workplace
from services.trainer.updates.online import GRPO, OnlineDPO
from services.trainer.updates.selected import OutcomeRejection, Rejection

UPDATES: dict[PolicyUpdate, type[Update]] = {
    PolicyUpdate.ONLINE_DPO: OnlineDPO,
    PolicyUpdate.GRPO: GRPO,
    PolicyUpdate.REJECTION: Rejection,
    PolicyUpdate.OUTCOME_REJECTION: OutcomeRejection,
}

__all__ = ["UPDATES", "Reports", "Update", "Workplace"]
