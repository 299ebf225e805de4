"""The shipped cluster.yaml in a cloud that is pretended on one machine; see README.md here."""
