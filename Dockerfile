# A node: Python 3.11, the pinned packages and the code. `ray up` puts its own copy of the code over
# that (file_mounts); on Kubernetes the image's is what runs.
#
# The base is named by digest, so that the same file makes the same image next year. It has no
# default here: take the digest of the day, write it down, and give it:
#
#   docker buildx imagetools inspect python:3.11-slim-bookworm --format '{{.Manifest.Digest}}'
#   docker build -t REGISTRY/taehv-trainer --build-arg BASE=python:3.11-slim-bookworm@sha256:... .
#   docker push REGISTRY/taehv-trainer        # prints the digest for cluster.yaml or rayjob.yaml
#
# torch brings its own CUDA libraries; of the machine it needs NVIDIA's driver and container toolkit.
ARG BASE
FROM ${BASE}

# gcc and ninja's companions: DeepSpeed and Triton compile kernels when first used. rsync and ssh:
# `ray up`.
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential openssh-client procps rsync sudo \
    && rm -rf /var/lib/apt/lists/*

# Not root: a job can run any code of its author. ~/venv and ~/taehv-trainer are where cluster.yaml,
# cloud/setup_node.sh and rayjob.yaml look for them.
RUN useradd --create-home --uid 1000 --shell /bin/bash ray \
    && echo "ray ALL=(root) NOPASSWD: /usr/bin/apt-get" > /etc/sudoers.d/ray
USER ray
WORKDIR /home/ray

COPY --chown=ray requirements.txt requirements.txt
COPY --chown=ray cloud/requirements.txt cloud/requirements.txt
# Compiled bytecode stays: without it a cold Ray takes longer to start than it allows itself.
RUN python -m venv venv \
    && venv/bin/pip install --no-cache-dir -r requirements.txt -r cloud/requirements.txt
# `ray up` mounts code and token below the HOME that an image names, or else in /root.
ENV HOME=/home/ray PATH=/home/ray/venv/bin:$PATH RAY_AUTH_MODE=token

COPY --chown=ray . taehv-trainer
WORKDIR /home/ray/taehv-trainer
