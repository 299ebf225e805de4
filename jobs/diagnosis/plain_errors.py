"""What stores, Ray and clouds answer, in plain words."""

from __future__ import annotations

import re
from dataclasses import dataclass

_STORE_ERRORS = {
    "there is no such bucket": r"NO_SUCH_BUCKET|NoSuchBucket|Bucket '?[^']*'? not found"
    r"|bucket does not exist",
    "access is denied": r"ACCESS_DENIED|AccessDenied|HTTP (?:response code|status) 403|Forbidden",
    "the credentials are missing, wrong or expired": r"INVALID_ACCESS_KEY|InvalidAccessKeyId"
    r"|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch|ExpiredToken|No AWS Credentials"
    r"|EC2MetadataClient",
    "the store does not answer": r"NETWORK_CONNECTION|curlCode: (?:6|7|28)\b|Couldn't connect"
    r"|Could not resolve|Timeout was reached",
}


def plain_error(text: str) -> str:
    """An error in one line, begun with what it comes to, where that is known."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    has_trace = '  File "' in text
    short = (lines[-1] if has_trace else " ".join(lines))[:400] if lines else "no reason given"
    for words, pattern in _STORE_ERRORS.items():
        if re.search(pattern, text):
            return f"{words} ({short})"
    return short


def plain_connection_error(text: str) -> str:
    """What the system said of a connection, without the layers that handed it on."""
    found = re.search(r"\[Errno -?\d+\] [\w ]+|(?:connect|read) timed out|Read timed out", text)
    return found[0] if found else plain_error(text)


@dataclass(frozen=True)
class LaunchError:
    """A kind of errors with which a cloud refuses to start a node."""

    pattern: str
    words: str
    advice: str
    passes: bool = False
    """Whether waiting helps."""


_LAUNCH_ERRORS = (
    LaunchError(
        "InsufficientInstanceCapacity|InsufficientHostCapacity|InsufficientCapacity"
        "|ZONE_RESOURCE_POOL_EXHAUSTED|STOCKOUT",
        "the cloud has no such machine free in these zones now",
        "wait, or add zones (provider.availability_zone), another node type or on-demand nodes",
        passes=True,
    ),
    LaunchError(
        "VcpuLimitExceeded|MaxSpotInstanceCountExceeded|InstanceLimitExceeded|QuotaExceeded"
        "|QUOTA_EXCEEDED|Quota '",
        "the account's quota for such machines is used up",
        "ask the cloud for a higher quota in this region (spot and on-demand have their own), or "
        "use smaller machines",
    ),
    LaunchError(
        "RequestLimitExceeded|Throttling|RATE_LIMIT_EXCEEDED",
        "the cloud took too many requests from this account",
        "wait; a lower upscaling_speed asks for fewer nodes at once",
        passes=True,
    ),
    LaunchError(
        "SpotMaxPriceTooLow",
        "the spot price is above the one that is offered",
        "leave MaxPrice out of node_config: the on-demand price is then the bound",
    ),
    LaunchError(
        "InvalidInstanceType|The following supplied instance types do not exist"
        "|not supported in your requested Availability Zone|Unsupported\\)"
        "|machineTypes/\\S+' was not found",
        "there is no such instance type there",
        "correct InstanceType in cluster.yaml (is it mistyped, or not offered in these zones?), "
        "then `ray up cluster.yaml`",
    ),
    LaunchError(
        "ExpiredToken|RequestExpired|AuthFailure|InvalidClientTokenId|SignatureDoesNotMatch"
        "|Unable to locate credentials|NoCredentials|invalid_grant",
        "the cloud does not accept the head's credentials",
        "give the head an instance profile (IamInstanceProfile), or renew what it uses instead",
    ),
    LaunchError(
        "UnauthorizedOperation|AccessDenied|not authorized|PERMISSION_DENIED|forbidden",
        "the head may not start such nodes",
        "allow its role ec2:RunInstances, and iam:PassRole for the profile of the nodes "
        "(cloud/aws_account.yaml has both)",
    ),
    LaunchError(
        "InvalidAMIID",
        "there is no such image",
        "correct ImageId in cluster.yaml: images belong to one region, and old ones are withdrawn",
    ),
    LaunchError(
        r"Invalid(?:Group|SecurityGroup|Subnet|SubnetID|KeyPair|ParameterValue)\b|IamInstanceProfile",
        "something that node_config names does not exist in this region",
        "correct the security group, subnet, key or profile that the message names",
    ),
    LaunchError(
        "",
        "the launch failed",
        "look at monitor.log in the head's /tmp/ray/session_latest/logs",
    ),
)


def explain_launch_error(error: str) -> LaunchError:
    """The kind of an error; the last one stands for all that are not known."""
    return next(kind for kind in _LAUNCH_ERRORS if re.search(kind.pattern, error))
