"""What servers ask of the clouds' APIs, on loopback: as much of each as a look-up of one machine needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

from tests.support.cloud_documents import ACCOUNT, GCP_INSTANCE, INSTANCE, PROJECT, SUBSCRIPTION, TENANT, VM
from tests.support.cloud_services import Answer, Handle, Request, as_json

ATTACHED = "2024-05-01T10:00:00.000Z"
PROFILE = f"arn:aws:iam::{ACCOUNT}:instance-profile/path/web"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/web"
GROUP_ID = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/net/providers/Microsoft.Network/networkSecurityGroups/front"
SUBNET_ID = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/net/providers/Microsoft.Network/virtualNetworks/vnet/subnets/default"
)
MACHINE_ID = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/group-1/providers/Microsoft.Compute/virtualMachines/blog"
SCALE_SET_ID = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/group-1/providers/Microsoft.Compute/virtualMachineScaleSets/set-1"
)


def aws_api(
    *,
    instance: str = INSTANCE,
    running: bool = True,
    disk_attached: str = ATTACHED,
    device_index: int = 0,
    root_type: str = "ebs",
    root_name: str = "/dev/xvda",
) -> Handle:
    """EC2, IAM and STS by their query APIs. Requests must be signed; a role's keys are `ROLEKEY`."""

    def handle(request: Request) -> Answer:
        form = request.form
        if "AWS4-HMAC-SHA256" not in request.headers.get("authorization", ""):
            return 403, b"<Response><Errors><Error><Code>AuthFailure</Code></Error></Errors></Response>"
        match form.get("Action"):
            case "DescribeInstances":
                if form["InstanceId.1"] != instance:
                    return 400, _ec2_error("InvalidInstanceID.NotFound")
                assert form["Filter.1.Name"] == "instance-state-name"
                machine = _ec2_instance(instance, disk_attached, device_index, root_type, root_name)
                return 200, _ec2(
                    "DescribeInstances", _set("reservationSet", machine) if running else "<reservationSet/>"
                )
            case "GetInstanceProfile":
                assert form["InstanceProfileName"] == "web"
                return 200, _iam_profile()
            case "AssumeRole":
                assert form["RoleArn"] == f"arn:aws:iam::{ACCOUNT}:role/look"
                return 200, _sts_credentials()
        return 400, _ec2_error("InvalidAction")

    return handle


def gcp_api(*, instance: str = GCP_INSTANCE, secret: str = "for selectors", token: str = "access-1") -> Handle:
    """The Compute API's instances.get, and the endpoint that gives tokens to service accounts."""
    path = f"/compute/v1/projects/{PROJECT}/zones/us-west1-b/instances/node-1"
    found = {
        "id": instance,
        "name": "node-1",
        "labels": {"team": "pay", "owner": "somebody"},
        "tags": {"items": ["web", "tls"]},
        "metadata": {"items": [{"key": "role", "value": secret}, {"key": "ssh-keys", "value": "x" * 4000}]},
        "serviceAccounts": [{"email": "web@project-1.iam.gserviceaccount.com", "scopes": []}],
    }

    def handle(request: Request) -> Answer:
        if request.path == "/token":
            assert request.form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
            return 200, as_json({"access_token": token, "expires_in": 3600, "token_type": "Bearer"})
        if request.headers.get("authorization") != f"Bearer {token}":
            return 401, as_json({"error": "unauthenticated"})
        return (200, as_json(found)) if request.path == path else (404, as_json({"error": "not found"}))

    return handle


def azure_api(*, vm: str = VM, token: str = "access-1", pages: int = 2, elsewhere: bool = False) -> Handle:
    """The log-in of an application, the resource graph, and the list of a scale set's machines."""
    machine: dict[str, Any] = {"id": MACHINE_ID, "name": "blog", "location": "eastus", "resourceGroup": "group-1"}
    machine["tags"] = {"team": "pay", "owner": "somebody"}
    interface = {
        "networkSecurityGroup": {"id": GROUP_ID},
        "ipConfigurations": [{"properties": {"subnet": {"id": SUBNET_ID}}}],
    }

    def graph(request: Request) -> Any:
        asked = json.loads(request.body)
        assert asked["subscriptions"] == [SUBSCRIPTION]
        query = asked["query"]
        if "networkinterfaces" in query:
            return [{"properties": interface}] if MACHINE_ID in query else []
        if "virtualmachinescalesets" in query:
            return [{"id": SCALE_SET_ID, "name": "set-1"}] if "'set-1'" in query else []
        return [machine] if f"'{vm}'" in query else []

    def page(request: Request) -> Mapping[str, Any]:
        number = int(request.query.get("page", "1"))
        if number < pages:
            base = "https://elsewhere.example" if elsewhere else f"https://{request.headers['host']}"
            return {"value": [], "nextLink": f"{base}{request.path}?page={number + 1}"}
        profile = {"networkInterfaceConfigurations": [{"name": "nic", "properties": interface}]}
        found = {**machine, "name": "set-1_0", "properties": {"vmId": vm, "networkProfileConfiguration": profile}}
        return {"value": [found]}

    def handle(request: Request) -> Answer:
        if request.path == f"/{TENANT}/v2.0/.well-known/openid-configuration":
            return 200, as_json(_azure_authority(f"https://{request.headers['host']}/{TENANT}"))
        if request.path == f"/{TENANT}/oauth2/v2.0/token":
            proof = request.form.get("client_secret") or request.form.get("client_assertion")
            if proof != "proof-1":
                return 401, as_json({"error": "invalid_client", "error_description": "no"})
            return 200, as_json({"access_token": token, "expires_in": 3600, "token_type": "Bearer"})
        if request.headers.get("authorization") != f"Bearer {token}":
            return 401, as_json({"error": {"code": "AuthenticationFailed"}})
        if request.path == "/providers/Microsoft.ResourceGraph/resources":
            return 200, as_json({"data": graph(request)})
        if request.path == f"{SCALE_SET_ID}/virtualMachines":
            return 200, as_json(page(request))
        return 404, as_json({"error": {"code": "NotFound"}})

    return handle


def _azure_authority(base: str) -> dict[str, str]:
    return {
        "issuer": f"{base}/v2.0",
        "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
        "token_endpoint": f"{base}/oauth2/v2.0/token",
        "jwks_uri": f"{base}/keys",
    }


def _ec2(action: str, body: str) -> bytes:
    name = "http://ec2.amazonaws.com/doc/2016-11-15/"
    return f'<{action}Response xmlns="{name}"><requestId>1</requestId>{body}</{action}Response>'.encode()


def _ec2_error(code: str) -> bytes:
    error = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
    return f"<Response><Errors>{error}</Errors><RequestID>1</RequestID></Response>".encode()


def _set(name: str, *items: str) -> str:
    return f"<{name}>{''.join(f'<item>{item}</item>' for item in items)}</{name}>"


def _text(**values: object) -> str:
    return "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in values.items())


def _ec2_instance(instance: str, disk_attached: str, device_index: int, root_type: str, root_name: str) -> str:
    attachment = _text(attachmentId="a-1", deviceIndex=device_index, status="attached", attachTime=ATTACHED)
    disk = _text(volumeId="vol-1", status="attached", attachTime=disk_attached)
    found = _text(instanceId=instance, rootDeviceType=root_type, rootDeviceName="/dev/xvda")
    found += _set("blockDeviceMapping", _text(deviceName=root_name) + f"<ebs>{disk}</ebs>")
    found += _set("networkInterfaceSet", f"<attachment>{attachment}</attachment>")
    found += _set("groupSet", _text(groupId="sg-1", groupName="web"))
    found += _set("tagSet", _text(key="Name", value="blog"), _text(key="team", value="pay"))
    found += f"<iamInstanceProfile>{_text(arn=PROFILE, id='p-1')}</iamInstanceProfile>"
    return _text(reservationId="r-1") + _set("instancesSet", found)


def _iam_profile() -> bytes:
    role = _text(Path="/", RoleName="web", RoleId="r", Arn=ROLE, CreateDate=ATTACHED)
    profile = _text(Path="/path/", InstanceProfileName="web", InstanceProfileId="p-1", Arn=PROFILE, CreateDate=ATTACHED)
    body = f"<InstanceProfile>{profile}<Roles><member>{role}</member></Roles></InstanceProfile>"
    return _result("GetInstanceProfile", "https://iam.amazonaws.com/doc/2010-05-08/", body)


def _sts_credentials() -> bytes:
    found = _text(AccessKeyId="ROLEKEY", SecretAccessKey="s", SessionToken="t", Expiration="2099-01-01T00:00:00Z")
    return _result("AssumeRole", "https://sts.amazonaws.com/doc/2011-06-15/", f"<Credentials>{found}</Credentials>")


def _result(action: str, name: str, body: str) -> bytes:
    return f'<{action}Response xmlns="{name}"><{action}Result>{body}</{action}Result></{action}Response>'.encode()
