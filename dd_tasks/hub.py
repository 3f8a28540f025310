"""The Hugging Face Hub: the only module that imports huggingface_hub."""

from pathlib import Path

from dd_tasks.errors import InputError

WEIGHTS = "model.safetensors"


def fetch_weights(repository: str) -> Path:
    """The safetensors weights of a model repository `ORG/NAME[@REVISION]`, downloaded once. InputError where there are none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    try:
        return Path(hf_hub_download(name, WEIGHTS, revision=revision or None))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"no {WEIGHTS} from {repository!r}: {reason}") from None
