"""The models of this package as JSON Schema files (draft 2020-12), for readers in other languages."""

import json
from pathlib import Path

from pydantic import BaseModel

from schemas.calibration import Calibration
from schemas.card import CardHeader
from schemas.comparison import Comparison
from schemas.index import ShardIndex
from schemas.manifest import Manifest
from schemas.plan import Plan
from schemas.profile import Profile
from schemas.tables import GroupRow, ImageRow, ViewRow

FOLDER = Path(__file__).parent / "json"
MODELS: dict[str, type[BaseModel]] = {
    "manifest": Manifest,
    "index": ShardIndex,
    "card": CardHeader,
    "images": ImageRow,
    "soft_labels": ViewRow,
    "compact_soft_labels": GroupRow,
    "comparison": Comparison,
    "calibration": Calibration,
    "plan": Plan,
    "profile": Profile,
}


def schema_text(model: type[BaseModel]) -> str:
    """The model's JSON Schema as text: sorted keys, a newline at the end."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema(by_alias=True)}
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def export(folder: Path = FOLDER) -> list[Path]:
    """Write every schema into `folder`, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, model in MODELS.items():
        file = folder / f"{name}.schema.json"
        file.write_text(schema_text(model), encoding="utf-8")
        files.append(file)
    return files
