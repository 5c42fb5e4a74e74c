"""TRL's configurations, read as ours: what each flag became, and what differs."""

from polyalign.methods.trl.importer import Imported, import_config
from polyalign.methods.trl.translation import Note

__all__ = ["Imported", "Note", "import_config"]
