"""What clouds answer when they start no node, in plain words."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class _Cause:
    """A kind of errors of clouds."""

    pattern: str
    words: str
    advice: str
    passes: bool = False
    """Whether waiting helps."""


_CAUSES = (
    _Cause(
        "InsufficientInstanceCapacity|InsufficientHostCapacity|InsufficientCapacity"
        "|ZONE_RESOURCE_POOL_EXHAUSTED|STOCKOUT",
        "the cloud has no such machine free in these zones now",
        "wait, or add zones (provider.availability_zone), another node type or on-demand nodes",
        passes=True,
    ),
    _Cause(
        "VcpuLimitExceeded|MaxSpotInstanceCountExceeded|InstanceLimitExceeded|QuotaExceeded"
        "|QUOTA_EXCEEDED|Quota '",
        "the account's quota for such machines is used up",
        "ask the cloud for a higher quota in this region (spot and on-demand have their own), or "
        "use smaller machines",
    ),
    _Cause(
        "RequestLimitExceeded|Throttling|RATE_LIMIT_EXCEEDED",
        "the cloud took too many requests from this account",
        "wait; a lower upscaling_speed asks for fewer nodes at once",
        passes=True,
    ),
    _Cause(
        "SpotMaxPriceTooLow",
        "the spot price is above the one that is offered",
        "leave MaxPrice out of node_config: the on-demand price is then the bound",
    ),
    _Cause(
        "InvalidInstanceType|The following supplied instance types do not exist"
        "|not supported in your requested Availability Zone|Unsupported\\)"
        "|machineTypes/\\S+' was not found",
        "there is no such instance type there",
        "correct InstanceType in cluster.yaml (is it mistyped, or not offered in these zones?), "
        "then `ray up cluster.yaml`",
    ),
    _Cause(
        "ExpiredToken|RequestExpired|AuthFailure|InvalidClientTokenId|SignatureDoesNotMatch"
        "|Unable to locate credentials|NoCredentials|invalid_grant",
        "the cloud does not accept the head's credentials",
        "give the head an instance profile (IamInstanceProfile), or renew what it uses instead",
    ),
    _Cause(
        "UnauthorizedOperation|AccessDenied|not authorized|PERMISSION_DENIED|forbidden",
        "the head may not start such nodes",
        "allow its role ec2:RunInstances, and iam:PassRole for the profile of the nodes "
        "(cloud/aws_account.yaml has both)",
    ),
    _Cause(
        "InvalidAMIID",
        "there is no such image",
        "correct ImageId in cluster.yaml: images belong to one region, and old ones are withdrawn",
    ),
    _Cause(
        r"Invalid(?:Group|SecurityGroup|Subnet|SubnetID|KeyPair|ParameterValue)\b|IamInstanceProfile",
        "something that node_config names does not exist in this region",
        "correct the security group, subnet, key or profile that the message names",
    ),
)


def explain(error: str) -> tuple[str, str, bool]:
    """An error of a cloud in plain words, what to do, and whether waiting helps."""
    for cause in _CAUSES:
        if re.search(cause.pattern, error):
            return cause.words, cause.advice, cause.passes
    return (
        "the launch failed",
        "look at monitor.log in the head's /tmp/ray/session_latest/logs",
        False,
    )
