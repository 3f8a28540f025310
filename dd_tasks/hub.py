"""The Hugging Face Hub: the only module that imports huggingface_hub."""

from pathlib import Path

from dd_tasks.errors import InputError

WEIGHTS = "model.safetensors"


def fetch_weights(repository: str) -> Path:
    """The safetensors of a model repository `ORG/NAME[@REVISION]`, downloaded once. InputError where there are none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    try:
        return Path(hf_hub_download(name, WEIGHTS, revision=revision or None))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[1] if isinstance(error, HfHubHTTPError) and len(lines) > 1 else lines[0]  # after the bare status
        raise InputError(f"no {WEIGHTS} from {repository!r}: {reason}") from None


def fetch_dataset(repository: str, endpoint: str | None = None) -> Path:
    """The files of a dataset repository `ORG/NAME[@REVISION]`, all of one commit, in the Hub's cache. InputError where
    there are none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision or None, endpoint=endpoint))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[1] if isinstance(error, HfHubHTTPError) and len(lines) > 1 else lines[0]  # after the bare status
        raise InputError(f"no dataset {repository!r} on the Hub: {reason}") from None
