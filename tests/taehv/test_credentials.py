"""No password of an address is written down, shown or sent; the rest of the address stays."""

import dataclasses
import io
import logging
import sys
from pathlib import Path

import pytest
import yaml

from data_pipeline.errors import DataError
from data_pipeline.videos.storage import open_stream
from jobs.cli.config import Config, flatten
from jobs.cli.console import log_plainly, log_without_credentials, refuse
from jobs.diagnosis import output
from jobs.diagnosis.finding import Finding, Level
from jobs.latents.folder import Settings, write_settings
from jobs.sweep.command_line import keep_definition
from jobs.sweep.ledger import Ledger
from jobs.sweep.results import write_csv
from taehv.credentials import hide_credentials, without_credentials
from taehv.errors import TrainingError
from taehv.run.quarantine import Quarantine
from taehv.run.run_folder import RunFolder
from taehv.training.state import to_yaml
from tests.helpers.sweep_records import add_trial, made_plan

ADDRESSES = {
    # No credential: nothing changes.
    "": "",
    "/data/a@b/c.json": "/data/a@b/c.json",
    "/data/what?password=x": "/data/what?password=x",
    "user:pass@host": "user:pass@host",
    "sqlite:////home/me@corp/mlflow.db": "sqlite:////home/me@corp/mlflow.db",
    "http://127.0.0.1:5000": "http://127.0.0.1:5000",
    "http://[::1]:5000/x@y": "http://[::1]:5000/x@y",
    "databricks://profile": "databricks://profile",
    "s3://bucket/a@2x/b#1.json": "s3://bucket/a@2x/b#1.json",
    "s3://bucket/run?endpoint_override=127.0.0.1:9&scheme=http&region=x": (
        "s3://bucket/run?endpoint_override=127.0.0.1:9&scheme=http&region=x"
    ),
    # Before the host.
    "http://user:SECRET@host:5000/x?y=1": "http://host:5000/x?y=1",
    "https://SECRET@host": "https://host",
    "http://me@corp.com:SECRET@host": "http://host",
    "postgresql+psycopg2://user:SECRET@host/db?sslmode=require": (
        "postgresql+psycopg2://host/db?sslmode=require"
    ),
    "s3://KEY:SECRET@bucket/run?scheme=http": "s3://bucket/run?scheme=http",
    "HTTP://user:SECRET@host": "HTTP://host",
    "http://user:SECRET@[::1]:5000": "http://[::1]:5000",
    # A password that should have been escaped.
    "http://user:SEC/RET@host/x": "http://host/x",
    "http://user:SEC?RET@host/x": "http://host/x",
    "http://user:SEC#RET@host/x": "http://host/x",
    "http://user:SEC RET@host/x": "http://host/x",
    "http://user:SEC@RET@host/x": "http://host/x",
    "http://user:/SECRET@host/x": "http://host/x",
    "s3://KEY:123/SECRET+@bucket/run": "s3://bucket/run",
    "postgresql://user@corp:123/SECRET@host/db": "postgresql://host/db",
    # Among the options.
    "s3://bucket/run?access_key=SECRET&scheme=http&secret_key=SECRET": (
        "s3://bucket/run?scheme=http"
    ),
    "s3://bucket/run?region=x&session_token=SECRET": "s3://bucket/run?region=x",
    "sqlite:////a/mlflow.db?password=SECRET": "sqlite:////a/mlflow.db",
    "http://host/?Token=SECRET;x=1": "http://host/?x=1",
    "http://host/x?pass%77ord=SECRET": "http://host/x",
    "http://host/x?a=1#access_token=SECRET": "http://host/x?a=1",
    "https://b.s3.amazonaws.com/k?X-Amz-Credential=SECRET&X-Amz-Signature=SECRET&X-Amz-Date=1": (
        "https://b.s3.amazonaws.com/k?X-Amz-Date=1"
    ),
    "https://a.blob.core.windows.net/k?sv=1&sig=SECRET": "https://a.blob.core.windows.net/k?sv=1",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Du%3BPWD%3DSECRET": "mssql+pyodbc:///",
    "s3://bucket/k?endpoint_override=http://u:SECRET@host&scheme=http": (
        "s3://bucket/k?scheme=http"
    ),
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_what_remains_of_an_address(address: str) -> None:
    shown = without_credentials(address)
    assert shown == ADDRESSES[address]
    assert without_credentials(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mail me@corp.com at 5:30; no address?", "mail me@corp.com at 5:30; no address?"),
        (
            "s3://KEY:SECRET@bucket/run is full (http://u:SECRET@h/x), see a@b",
            "s3://bucket/run is full (http://h/x), see a@b",
        ),
        ('{"uri": "http://u:SECRET@h", "to": "a@b"}', '{"uri": "http://h", "to": "a@b"}'),
    ],
)
def test_addresses_within_a_text(text: str, shown: str) -> None:
    assert hide_credentials(text) == shown


STORE = "s3://KEYID:SECRET@bucket/%s?endpoint_override=127.0.0.1:9&scheme=http"


def secret_config() -> Config:
    """A credential in every setting that can be an address."""
    plain = Config()
    replace = dataclasses.replace
    return replace(
        plain,
        data=replace(plain.data, root=STORE % "data", annotations=STORE % "a.json"),
        model=replace(plain.model, pretrained=STORE % "w.pth"),
        teacher=replace(plain.teacher, path=STORE % "vae"),
        train=replace(plain.train, run_dir=STORE % "run", resume=STORE % "step_00000001"),
        cluster=replace(plain.cluster, storage=STORE % "all"),
        tracking=replace(plain.tracking, uri="http://user:SECRET@127.0.0.1:9/x"),
    )


def test_the_configuration_keeps_its_credentials_to_itself() -> None:
    config = secret_config()
    written = to_yaml(config)
    for text in (written, str(flatten(config))):
        assert "SECRET" not in text
        assert "KEYID" not in text
    assert yaml.safe_load(written)["tracking"]["uri"] == "http://127.0.0.1:9/x"
    assert flatten(config)["train.run_dir"] == (
        "s3://bucket/run?endpoint_override=127.0.0.1:9&scheme=http"
    )
    assert config.train.run_dir == STORE % "run"


def test_a_folder_is_shown_without_and_opened_with_them() -> None:
    folder = RunFolder(STORE % "run")
    assert str(folder) == "s3://bucket/run?endpoint_override=127.0.0.1:9&scheme=http"
    assert folder.address_of("ray") == STORE % "run/ray"


def test_lines_of_the_log_and_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    log_plainly()
    try:
        raise OSError(f"{STORE % 'run'} refuses")
    except OSError as error:
        logging.getLogger("taehv.run.saving").info("%s is saved", STORE % "run")
        logging.getLogger("taehv.run.saving").warning("it failed", exc_info=True)
        refuse(error, 1)
        sys.excepthook(type(error), error, error.__traceback__)
    assert told.getvalue().count("s3://bucket/run?endpoint_override=127.0.0.1:9") == 4
    assert "SECRET" not in told.getvalue()


def test_records_that_others_write_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray does in a training worker, with a handler and a form of its own."""
    told = io.StringIO()
    log = logging.getLogger("taehv.run.saving")
    handler = logging.StreamHandler(told)
    factory = logging.getLogRecordFactory()
    log.addHandler(handler)
    try:
        for _ in range(2):
            log_without_credentials()
        log.error("checkpoint %s is saved, 100%% of it", STORE % "run")
    finally:
        log.removeHandler(handler)
        logging.setLogRecordFactory(factory)
    assert (
        told.getvalue() == f"checkpoint {without_credentials(STORE % 'run')} is saved, 100% of it\n"
    )


def test_errors_are_shown_without_them_wherever_they_are_caught() -> None:
    error = TrainingError(f"--train.resume {STORE % 'step_00000001'}: it is not there")
    assert "s3://bucket/step_00000001" in str(error)
    assert "SECRET" not in str(error)


@pytest.mark.parametrize("user", ["KEYID:SECRET@", "KEYID:SEC/RET@"])
def test_data_takes_its_credentials_from_the_environment(user: str) -> None:
    """In its address they would be taken for the bucket's name, which S3's errors repeat."""
    with pytest.raises(DataError, match="AWS_SECRET_ACCESS_KEY") as caught:
        open_stream(f"s3://{user}bucket/a.json?endpoint_override=127.0.0.1:9&scheme=http")
    assert "RET" not in str(caught.value).replace("SECRET_ACCESS", "")


def test_the_doctors_lines() -> None:
    values = {"run_dir": STORE % "run", "seen": [STORE % "data"]}
    finding = Finding(Level.WARNING, "store", "", STORE % "run", f"see {STORE % 'x'}", values)
    for text in (
        output.format_finding(finding, False),
        output.to_json([finding], "ray://u:SECRET@h:1"),
    ):
        assert "SECRET" not in text
        assert "s3://bucket/run" in text


def test_lists_of_videos(tmp_path: Path) -> None:
    quarantine = Quarantine(RunFolder(str(tmp_path)))
    entry = {"video": "a.mp4", "reason": f"{STORE % 'a.mp4'} does not answer"}
    (told,) = quarantine.add([entry])  # type: ignore[list-item]
    for text in (str(told), (tmp_path / "quarantine.jsonl").read_text()):
        assert "SECRET" not in text
        assert "does not answer" in text


def test_settings_of_latents(tmp_path: Path) -> None:
    fields = {field.name: "" for field in dataclasses.fields(Settings)}
    settings = Settings(**fields | {"checkpoint": STORE % "w.pth", "root": STORE % "data"})  # type: ignore[arg-type]
    write_settings(RunFolder(str(tmp_path)), settings)
    text = (tmp_path / "latents.json").read_text()
    assert "SECRET" not in text
    assert "s3://bucket/w.pth" in text


def test_records_of_a_sweep(tmp_path: Path) -> None:
    text = f"""\
settings:
  data: {{root: "{STORE % "data"}"}}
  tracking: {{uri: "http://user:SECRET@127.0.0.1:9"}}
space:
  loss.seraena: [0.1, 0.2]
"""
    plan = made_plan(tmp_path, text)
    (tmp_path / "made.yaml").unlink()
    folder = RunFolder(str(tmp_path / "sweep"))
    folder.local.mkdir()
    for _ in range(2):
        # The second time it is compared with what was kept.
        keep_definition(plan, folder)
    ledger = Ledger(folder)
    number = add_trial(plan, ledger, {"loss.seraena": 0.1}, [20.0])
    ledger.update(number, status="failed", error=f"{STORE % 'run'} refuses")
    write_csv(plan, ledger)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    written = {"sweep.json", "sweep.yaml", "trial.json", "results.csv"}
    assert {path.name for path in left} >= written
    for path in left:
        assert "SECRET" not in path.read_text(), path
    kept = yaml.safe_load((folder.local / "sweep.yaml").read_text())
    assert kept["settings"]["tracking"]["uri"] == "http://127.0.0.1:9"


def test_a_password_cannot_be_swept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give credentials by the environment"):
        made_plan(tmp_path, f'space:\n  model.pretrained: ["{STORE % "w.pth"}", "w.pth"]\n')
