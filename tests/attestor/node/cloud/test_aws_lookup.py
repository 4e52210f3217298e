"""Look-ups by Amazon's API, by boto3 itself, at a stand-in that speaks EC2's, IAM's and STS's query protocols."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attestor.node.aws_iid import AwsIidVerifier, ServerConfig
from ca.errors import BurgeeError, ConfigError, Denied, Unavailable
from ca.ports import AttestedNode
from ca.runtime.config import from_values
from ca.runtime.notes import collecting
from tests.attestor.node.test_aws_iid import PATH, SELECTORS, no_challenge, server
from tests.support.cloud_apis import ATTACHED, ROLE, aws_api
from tests.support.cloud_documents import aws_evidence
from tests.support.cloud_services import Answer, Handle, Request, service
from tests.support.node_host import FakeHost

LATER = "2024-05-01T10:02:00.000Z"
FOUND = {
    "aws_iid:tag:Name:blog",
    "aws_iid:tag:team:pay",
    "aws_iid:sg:id:sg-1",
    "aws_iid:sg:name:web",
    f"aws_iid:iamrole:{ROLE}",
}


@pytest.fixture(autouse=True)
def _no_other_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")


class Api:
    """One stand-in that answers as the test at hand wants: making clients of boto3's takes long, so they are kept."""

    def __init__(self, directory: Path) -> None:
        self.handle: Handle = aws_api()
        self.requests: list[Request] = []
        self.url = ""
        self._secret = directory / "secret"
        self._secret.write_text("s3cret\n")
        self._made: dict[str, AwsIidVerifier] = {}

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        return self.handle(request)

    def verifier(self, *, template: str | None = None, **changes: Any) -> AwsIidVerifier:
        key = f"{template} {changes}"
        if key not in self._made:
            config = {"access_key_id": "KEY", "secret_key_file": str(self._secret)}
            config |= {f"{name}_endpoint": self.url for name in ("ec2", "iam", "sts")} | changes
            values = server(api=config) | ({} if template is None else {"agent_path_template": template})
            self._made[key] = AwsIidVerifier(from_values(values, ServerConfig), FakeHost())
        return self._made[key]

    async def look_up(self, handle: Handle, **changes: Any) -> AttestedNode:
        self.handle, self.requests = handle, []
        return await self.verifier(**changes).verify(aws_evidence(), no_challenge)

    async def refusal(self, handle: Handle, **changes: Any) -> BurgeeError:
        with pytest.raises((Denied, Unavailable)) as caught:
            await self.look_up(handle, **changes)
        assert isinstance(caught.value, BurgeeError)
        return caught.value


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    made = Api(tmp_path_factory.mktemp("aws"))
    with service(made.answer) as running:
        made.url = running.url
        yield made


async def test_what_the_api_says_becomes_selectors(api: Api) -> None:
    node = await api.look_up(aws_api())
    assert node.path == PATH
    assert {str(selector) for selector in node.selectors} == SELECTORS | FOUND
    node = await api.look_up(aws_api(), instance_profile_selectors=False)
    assert {str(selector) for selector in node.selectors} == SELECTORS | FOUND - {f"aws_iid:iamrole:{ROLE}"}


async def test_tags_may_be_in_the_path(api: Api) -> None:
    node = await api.look_up(aws_api(), template="/{{ .PluginName }}/{{ .Tags.team }}/{{ .InstanceID }}")
    assert node.path.startswith("/spire/agent/aws_iid/pay/i-")
    error = await api.refusal(aws_api(), template="/{{ .PluginName }}/{{ .Tags.nobody }}")
    assert error.reason == "AGENT_PATH"


async def test_the_role_of_the_account_is_assumed(api: Api) -> None:
    node = await api.look_up(aws_api(), assume_role="look")
    assert {str(selector) for selector in node.selectors} == SELECTORS | FOUND
    keys = {request.form["Action"]: "ROLEKEY" in request.headers["authorization"] for request in api.requests}
    assert keys == {"AssumeRole": False, "DescribeInstances": True, "GetInstanceProfile": True}


@pytest.mark.parametrize(
    "change",
    [{"disk_attached": LATER}, {"device_index": 1}, {"root_name": "/dev/xvdb"}],
)
async def test_an_instance_that_was_tampered_with_is_refused(api: Api, change: dict[str, Any]) -> None:
    with collecting() as notes:
        assert (await api.refusal(aws_api(**change))).reason == "CLOUD_INSTANCE_TAMPERED"
    assert notes
    assert (await api.look_up(aws_api(**change), skip_block_device=True)).path == PATH


async def test_disks_that_cannot_be_moved_are_not_compared(api: Api) -> None:
    assert (await api.look_up(aws_api(disk_attached=LATER, root_type="instance-store"))).path == PATH
    assert (await api.look_up(aws_api(disk_attached=ATTACHED.replace(":00.", ":59.")))).path == PATH


async def test_an_instance_that_is_not_there_or_does_not_run_is_refused(api: Api) -> None:
    assert (await api.refusal(aws_api(instance="i-0fffffffffffffff0"))).reason == "CLOUD_INSTANCE_UNKNOWN"
    assert (await api.refusal(aws_api(running=False))).reason == "CLOUD_INSTANCE_UNKNOWN"


async def test_an_api_that_cannot_be_asked_is_no_refusal(api: Api) -> None:
    strange: list[Handle] = [lambda _: (400, b"junk"), lambda _: (200, b"<a/>"), lambda _: (500, b"")]
    for handle in strange:
        error = await api.refusal(handle)
        assert error.reason == "CLOUD_API"
        assert "junk" not in error.detail


def test_without_boto3_the_configuration_is_refused(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigError) as caught:
        api.verifier(timeout_seconds=1.0)
    assert caught.value.reason == "CLOUD_SDK_MISSING"
    assert "burgee[aws]" in caught.value.hint
    monkeypatch.undo()
    with pytest.raises(ConfigError):
        api.verifier(secret_key_file="/no/such/file")
