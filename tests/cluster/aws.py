"""moto's server, which starts as many instances as EC2: `python -m tests.cluster.aws -H HOST`."""

from typing import Any

from moto.ec2.responses.instances import InstanceResponse
from moto.server import main


def start_as_many_as_can_be() -> None:
    """EC2 starts up to MaxCount instances; moto starts MinCount."""
    get = InstanceResponse._get_param

    def get_param(self: Any, name: str, *more: Any, **options: Any) -> Any:
        return get(self, "MaxCount" if name == "MinCount" else name, *more, **options)

    InstanceResponse._get_param = get_param


if __name__ == "__main__":
    start_as_many_as_can_be()
    main()
