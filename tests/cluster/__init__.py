"""The shipped cluster.yaml, brought up in a cloud that is pretended on one machine.

`lab.sh` makes namespaces that stand for the user's laptop and a network of machines. In them
moto plays EC2, S3, IAM and CloudFormation. For every instance that Ray starts there, `centre.py`
boots a machine (`machine.sh`: namespaces with an sshd of their own); it ends it when Ray does,
plugs its volumes in, and is its metadata service. What is pretended is the cloud and its GPUs:
`ray up`, ssh, rsync, the autoscaler, the job, its training, S3's protocol and MLflow are real.
"""
