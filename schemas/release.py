"""A release: what is asked of it, and what came of it. No token is in either."""

from pydantic import ConfigDict, Field

from schemas.manifest import Frozen
from schemas.spec import in_order


class ReleaseSpec(Frozen):
    """The parameters of the flow, but for the artifact itself."""

    model_config = ConfigDict(json_schema_extra=in_order)

    target: str = Field(description="ORG/NAME on the Hub, or file:///FOLDER")
    private: bool = Field(default=False, description="whether a new repository is private")
    branch: str | None = Field(default=None, description="created from main where it is missing; default: main")
    pull_request: bool = Field(default=False, description="open a pull request instead of committing to main")
    tag: str | None = Field(default=None, description="of the revision, once it was read back")
    token_block: str | None = Field(
        default=None, description="Prefect Secret block that holds the token; default: HF_TOKEN of the environment"
    )


class Released(Frozen):
    target: str
    revision: str = Field(description="commit on the Hub; of a folder, the sha256 of its manifest")
    url: str
    changed: bool = Field(description="whether there was anything to do but to read back and to tag")
    changelog: list[str] = Field(description="lines; none where nothing changed")
    tag: str | None = None
    pull_request: str | None = Field(default=None, description="its page")
