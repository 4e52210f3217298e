"""What Amazon's API says of an instance: state, tags, groups, roles, and whether its disk was swapped.

Behind Amazon's own SDK (`pip install burgee[aws]`), which is imported only where the look-up is configured.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from attestor.node.cloud.aws_document import InstanceDocument
from attestor.node.cloud.sdk import LookUps, api_unavailable, needed, secret_from
from ca.errors import Denied
from ca.runtime.config import StrictModel
from ca.runtime.notes import note

MAX_ATTACH_SECONDS = 60
"""Root disk and first network interface of an instance that nobody tampered with were attached within this time."""
_UNKNOWN = frozenset({"InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"})


class ApiConfig(StrictModel):
    """Look-ups by Amazon's API. Without keys, boto3's own search for credentials applies (instance role, files,
    environment). Needs `ec2:DescribeInstances`, and `iam:GetInstanceProfile` for roles."""

    access_key_id: str | None = Field(default=None, min_length=1, description="Access key; with `secret_key_file`.")
    secret_key_file: Path | None = Field(default=None, description="A file with the access key's secret.")
    assume_role: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_+=,.@/-]+$",
        max_length=512,
        description="Name of a role in the instance's own account that is assumed for the look-up.",
    )
    partition: str = Field(
        default="aws", pattern=r"^aws(-[a-z]+){0,3}$", description="Partition of the role's ARN: `aws`, `aws-cn`, …"
    )
    skip_block_device: bool = Field(
        default=False,
        description="Leaves out the check that root disk and first network interface were attached within a minute.",
    )
    instance_profile_selectors: bool = Field(
        default=True, description="Selectors of the roles in the instance profile; costs a second call."
    )
    ec2_endpoint: str | None = Field(default=None, description="Another address than Amazon's own for EC2.")
    iam_endpoint: str | None = Field(default=None, description="The same for IAM.")
    sts_endpoint: str | None = Field(default=None, description="The same for STS.")
    timeout_seconds: float = Field(default=5.0, gt=0, le=60, description="For the whole look-up.")

    @model_validator(mode="after")
    def _both_or_none(self) -> ApiConfig:
        if (self.access_key_id is None) != (self.secret_key_file is None):
            raise ValueError("name both of `access_key_id` and `secret_key_file`, or none")
        return self


@dataclass(frozen=True, kw_only=True)
class Instance:
    """What was found. `selectors` are values without their type."""

    tags: Mapping[str, str]
    selectors: frozenset[str]


class AwsLookup:
    """Asks in threads. Clients are kept by region where they hold no account's role."""

    def __init__(self, config: ApiConfig) -> None:
        self._config = config
        self._look_ups = LookUps(seconds=config.timeout_seconds, vendor="Amazon")
        self._boto3 = needed("boto3", "aws")
        errors = importlib.import_module("botocore.exceptions")
        parsers = importlib.import_module("botocore.parsers")
        self._errors = (errors.BotoCoreError, errors.ClientError, parsers.ResponseParserError)
        self._botocore = importlib.import_module("botocore.config")
        secret = None if config.secret_key_file is None else secret_from(config.secret_key_file)
        self._session = self._boto3.Session(aws_access_key_id=config.access_key_id, aws_secret_access_key=secret)
        self._lock = threading.Lock()  # sessions are not for several threads at once
        self._clients: dict[tuple[str, str], Any] = {}

    async def look_up(self, document: InstanceDocument) -> Instance:
        """Raises Denied CLOUD_INSTANCE_UNKNOWN, CLOUD_INSTANCE_TAMPERED; Unavailable CLOUD_API."""
        return await self._look_ups.ask(self._look_up, document)

    def _look_up(self, document: InstanceDocument) -> Instance:
        try:
            instance = self._describe(document)
            if not self._config.skip_block_device:
                check_attach_times(instance)
            tags = {str(tag["Key"]): str(tag["Value"]) for tag in instance.get("Tags", ())}
            found = {f"tag:{key}:{value}" for key, value in tags.items()}
            for group in instance.get("SecurityGroups", ()):
                found |= {f"sg:id:{group['GroupId']}", f"sg:name:{group['GroupName']}"}
            found |= self._roles(instance, document)
        except self._errors as error:
            raise self._refusal(error) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise api_unavailable("Amazon", f"an answer without what it should have: {error!r}") from error
        return Instance(tags=tags, selectors=frozenset(found))

    def _describe(self, document: InstanceDocument) -> Mapping[str, Any]:
        """The instance, pending or running."""
        answer = self._client("ec2", document).describe_instances(
            InstanceIds=[document.instance_id],
            Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}],
        )
        found = [instance for reservation in answer["Reservations"] for instance in reservation["Instances"]]
        if len(found) != 1 or found[0]["InstanceId"] != document.instance_id:
            raise _unknown(f"{len(found)} running instances have this id")
        instance: Mapping[str, Any] = found[0]
        return instance

    def _roles(self, instance: Mapping[str, Any], document: InstanceDocument) -> set[str]:
        profile = instance.get("IamInstanceProfile")
        if profile is None or not self._config.instance_profile_selectors:
            return set()
        name = profile["Arn"].rpartition("/")[2]  # `…:instance-profile/<path>/<name>`
        answer = self._client("iam", document).get_instance_profile(InstanceProfileName=name)
        return {f"iamrole:{role['Arn']}" for role in answer["InstanceProfile"]["Roles"]}

    def _client(self, service: str, document: InstanceDocument) -> Any:
        """Nobody waits for another's call: the lock is for making clients alone."""
        if self._config.assume_role is not None:
            return self._made(service, document.region, **self._assumed(document))
        key = (service, document.region)
        if key not in self._clients:
            self._clients[key] = self._made(*key)
        return self._clients[key]

    def _assumed(self, document: InstanceDocument) -> dict[str, str]:
        config = self._config
        sts = self._made("sts", document.region)
        answer = sts.assume_role(
            RoleArn=f"arn:{config.partition}:iam::{document.account_id}:role/{config.assume_role}",
            RoleSessionName="burgee-aws-iid",
        )["Credentials"]
        return {
            "aws_access_key_id": answer["AccessKeyId"],
            "aws_secret_access_key": answer["SecretAccessKey"],
            "aws_session_token": answer["SessionToken"],
        }

    def _made(self, service: str, region: str, **credentials: str) -> Any:
        config = self._config
        endpoint = {"ec2": config.ec2_endpoint, "iam": config.iam_endpoint, "sts": config.sts_endpoint}[service]
        bounds = self._botocore.Config(
            connect_timeout=config.timeout_seconds,
            read_timeout=config.timeout_seconds,
            retries={"total_max_attempts": 2, "mode": "standard"},
        )
        with self._lock:
            return self._session.client(
                service, region_name=region, endpoint_url=endpoint, config=bounds, **credentials
            )

    def _refusal(self, error: Exception) -> Exception:
        code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
        if code in _UNKNOWN:
            return _unknown(code)
        return api_unavailable("Amazon", str(error))


def check_attach_times(instance: Mapping[str, Any]) -> None:
    """That the root disk came with the machine: who may move disks could bring another's agent into it.

    Raises Denied CLOUD_INSTANCE_TAMPERED.
    """
    interface = instance["NetworkInterfaces"][0]["Attachment"] if instance.get("NetworkInterfaces") else None
    if interface is None or interface["DeviceIndex"] != 0:
        raise _tampered("the first network interface is not the one of device index 0")
    if instance["RootDeviceType"] == "instance-store":  # cannot be detached
        return
    root = instance["RootDeviceName"]
    disks = [disk["Ebs"] for disk in instance.get("BlockDeviceMappings", ()) if disk["DeviceName"] == root]
    if len(disks) != 1:
        raise _tampered("the root disk is not among the disks")
    apart = _seconds_apart(disks[0]["AttachTime"], interface["AttachTime"])
    if apart > MAX_ATTACH_SECONDS:
        raise _tampered(f"root disk and network interface were attached {apart:.0f} s apart")
    note("attach times", f"root disk and network interface {apart:.0f} s apart")


def _seconds_apart(one: datetime, other: datetime) -> float:
    return abs((one - other).total_seconds())


def _tampered(what: str) -> Denied:
    note("instance", what)
    return Denied(
        "the instance may have been tampered with",
        reason="CLOUD_INSTANCE_TAMPERED",
        hint="its root disk was not attached when it was made; `skip_block_device` leaves this check out",
    )


def _unknown(what: str) -> Denied:
    note("instance", what)
    return Denied("the cloud knows no such running machine", reason="CLOUD_INSTANCE_UNKNOWN")
