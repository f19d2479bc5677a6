"""What a model may read of the runs, and how it drafts a change; nothing here changes a run."""

from analytics_service.chat.tools.toolbox import Toolbox, ToolOutcome

__all__ = ["ToolOutcome", "Toolbox"]
