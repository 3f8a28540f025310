"""The Hub's own client, as we set it up, against a server on loopback."""

import pytest
from hub_state import WRITE, Commit, Fault, File, Hub

from dd_tasks import hub as client
from dd_tasks.errors import InputError
from dd_tasks.hub import Blob, HubError, Repository, fetch_weights

WEIGHTS = "model.safetensors"


@pytest.fixture
def net(hub: Hub, tmp_path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A Hub with weights in `org/net.v1`, at main and, others, at the tag first; none downloaded yet."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    made = hub.create("models", "org/net.v1")
    for title in ("first", "main"):
        head = made.add("refs/heads/main", Commit({WEIGHTS: File(f"weights of {title}".encode(), True)}, title))
        made.refs[f"refs/tags/{title}"] = head
    return hub


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 1.0)
    monkeypatch.setattr(client, "PAUSES", (0.01, 0.01, 0.01))


@pytest.mark.parametrize(("revision", "title"), [("", "main"), ("@first", "first")])
def test_weights_are_fetched_by_name_and_revision_once(net: Hub, revision: str, title: str) -> None:
    for _ in range(2):
        assert fetch_weights(f"org/net.v1{revision}").read_bytes() == f"weights of {title}".encode()
    assert sum(call.startswith("GET") for call in net.calls) == 1


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("org/nothing", "Repository Not Found for url: http://127.0.0.1:"),
        ("org/net.v1@no", "Revision Not Found for url: http://127.0.0.1:"),
        ("a/b/c", "Repo id must be in the form"),
    ],
)
def test_what_is_not_there_is_one_line(net: Hub, name: str, start: str) -> None:
    with pytest.raises(InputError) as refused:
        fetch_weights(name)
    assert str(refused.value).startswith(f"no {WEIGHTS} from {name!r}: {start}") and "\n" not in str(refused.value)


def test_offline_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"^no model.safetensors from 'org/never-fetched': [^\n]+$"):
        fetch_weights("org/never-fetched")


@pytest.mark.usefixtures("impatient")
def test_every_request_has_a_time_out(net: Hub) -> None:
    from huggingface_hub import get_session

    client.limit_requests()
    net.fault = Fault("slow", 1, 2, seconds=600)
    address = Repository("org/name", WRITE).api.endpoint
    for asked in ({}, {"timeout": None}):  # the client asks for none when it lists files
        with pytest.raises(Exception, match="timed out"):
            get_session().get(f"{address}/api/models/org/net.v1", **asked)
    assert get_session().get(f"{address}/api/models/org/net.v1", timeout=600).status_code == 200


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["429", "500", "503", "reset", "slow", "lost"])
def test_a_call_is_made_again_and_that_is_seen(hub: Hub, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    hub.fault = Fault(kind, 1, 2, seconds=600)
    repository = Repository("org/name", WRITE)
    with caplog.at_level("WARNING", "dd_tasks"):
        repository.create(private=False)
    again = [record.getMessage() for record in caplog.records if record.name == "dd_tasks.hub"]
    assert len(again) == 2 and all(line.startswith("org/name: create: ") and "; again in " in line for line in again)
    assert list(hub.repositories) == [("datasets", "org/name")]


@pytest.mark.usefixtures("impatient")
def test_an_answer_that_is_none_is_one_line(hub: Hub) -> None:
    hub.create("datasets", "org/name")
    repository = Repository("org/name", WRITE)
    for ask in (repository.refs, lambda: repository.files("main"), lambda: list(repository.pull_requests())):
        hub.fault = Fault("200", 1, 9)  # {"error": ...} where there should be a list
        with pytest.raises(HubError, match=r"^org/name: list [^\n]+$"):
            ask()


def test_a_hub_that_asks_for_a_long_pause_has_failed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LONGEST_PAUSE", 0.5)
    hub.fault = Fault("429")  # it asks for a second
    with pytest.raises(HubError, match=r"^org/name: create: 429 Too Many Requests for url: .* \(told to fail\)$"):
        Repository("org/name", WRITE).create(private=False)
    assert len(hub.calls) == 1


def test_a_refusal_is_not_repeated_and_does_not_show_the_token(hub: Hub) -> None:
    with pytest.raises(HubError, match="Invalid credentials") as refused:
        Repository("org/name", "hf_another").create(private=False)
    assert hub.calls.count("POST /api/repos/create") == 1 and "\n" not in str(refused.value)
    assert "hf_another" not in repr(refused.value) + repr(Repository("org/name", "hf_another"))
    assert refused.value.__cause__ is refused.value.__context__ is None  # theirs hold the request, with its header


@pytest.mark.usefixtures("impatient")
def test_a_tag_whose_answer_was_lost_is_there_and_one_elsewhere_is_a_failure(hub: Hub) -> None:
    made = hub.create("datasets", "org/name")
    first, second = made.oid("main"), made.add("refs/heads/main", Commit({}, "second"))
    repository = Repository("org/name", WRITE)
    hub.fault = Fault("lost")
    repository.tag("v1", second)
    assert sum("/tag/" in call for call in hub.calls) == 1
    with pytest.raises(HubError, match=r"tag v1: .*already exists"):
        repository.tag("v1", first or "")
    assert repository.refs().tags == {"v1": second}


@pytest.mark.parametrize("large", [False, True])
def test_a_file_is_the_same_here_and_there(hub: Hub, large: bool, tmp_path) -> None:
    made = hub.create("datasets", "org/name")
    head = made.add("refs/heads/main", Commit({"a/b.bin": File(b"content", large)}, "one"))
    there = Repository("org/name", WRITE).files(head)
    (tmp_path / "file").write_bytes(b"content")
    assert list(there) == ["a/b.bin"] and (there["a/b.bin"].sha256 is not None) is large
    for here in (Blob.of(b"content"), Blob.of(tmp_path / "file")):
        assert here.same(there["a/b.bin"]) and here.size == there["a/b.bin"].size
    assert not Blob.of(b"contenT").same(there["a/b.bin"]) and not Blob.of(b"content").same(None)
