"""Downloads from a hub, played by a small server on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from common.models.hub import wanted_files
from tests.commands import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "model_index.json": '{"_class_name": "StableDiffusionPipeline"}',
    "README.md": "words",
    "unet/config.json": "{}",
    "unet/diffusion_pytorch_model.bin": "pickle",
    "unet/diffusion_pytorch_model.non_ema.bin": "pickle of other weights",
    "vae/config.json": "{}",
    "vae/diffusion_pytorch_model.safetensors": "weights",
    "vae/diffusion_pytorch_model.fp16.safetensors": "half of the weights",
    "vae/diffusion_pytorch_model.bin": "pickle",
    "tokenizer/chat_template.jinja": "{{ messages }}",
    "text_encoder/config.json": "{}",
    "text_encoder/model.safetensors.index.json": "{}",
    "text_encoder/model-00001-of-00002.safetensors": "weights",
    "text_encoder/model-00002-of-00002.safetensors": "weights",
    "text_encoder/pytorch_model.bin": "pickle",
    "text_encoder/openvino_model.bin": "something else",
    "text_encoder_2/config.json": "{}",
    "text_encoder_2/model.fp16.safetensors": "all there is",
    "tokenizer/vocab.json": "{}",
    "tokenizer/merges.txt": "",
    "scheduler/scheduler_config.json": "{}",
    "safety_checker/model.safetensors": "weights",
    "v1-5-pruned.ckpt": "everything again",
}
EXPECTED = {
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "tokenizer/chat_template.jinja",
    "text_encoder/config.json",
    "text_encoder/model.safetensors.index.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.fp16.safetensors",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "scheduler/scheduler_config.json",
}

CLIP_FILES = {
    "config.json": "{}",
    "preprocessor_config.json": "{}",
    "vocab.json": "{}",
    "merges.txt": "",
    "model.safetensors": "weights",
    "pytorch_model.bin": "pickle",
    "open_clip_pytorch_model.bin": "pickle of another layout",
    "flax_model.msgpack": "weights",
    "1_Pooling/config.json": "{}",
}
UNKNOWN = {
    **FILES,
    "model_index.json": json.dumps({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}),
}
UNKNOWN["unet/config.json"] = json.dumps({"_class_name": "UNet2DConditionModel", "sharpness": 3})

CLIP_SETTINGS = {"config.json", "preprocessor_config.json", "vocab.json", "merges.txt"}


class Hub(BaseHTTPRequestHandler):
    """owner/pipeline holds FILES at one commit; owner/gated lists them too, owner/words a text, owner/unknown a
    setting that no diffusers knows; nothing else is there."""

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        name = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        rest = path.partition(name)[2].strip("/").split("/", 2)
        if name not in ("owner/pipeline", "owner/words", "owner/gated", "owner/clip", "owner/unknown"):
            return self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if rest != [""] and rest[1] not in ("main", COMMIT):
            return self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        if name == "owner/gated" and rest[0] == "resolve":
            return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        files = {"owner/words": {"README.md": "words"}, "owner/clip": CLIP_FILES, "owner/unknown": UNKNOWN}.get(name, FILES)
        if rest[0] == "resolve":
            body = files[rest[2]].encode()
            etag = f'"{hashlib.sha1(body).hexdigest()}"'
            return self.answer(200, body, ETag=etag, X_Repo_Commit=COMMIT)
        if rest[0] == "tree":
            listed = [{"type": "file", "path": path, "size": len(text), "oid": "0" * 40} for path, text in files.items()]
            return self.answer(200, json.dumps(listed).encode(), Content_Type="application/json")
        siblings = [{"rfilename": path} for path in files]
        info = {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


LOOK_UP = """
import json, sys
from common.errors import InputError
from common.models.hub import find_folder
for name, revision in json.loads(sys.argv[1]):
    try:
        print(find_folder(name, revision))
    except InputError as error:
        print("error:", error)
"""


def look_up(endpoint, cache, *wanted):
    """What find_folder says to each name and revision, in a process of its own, which reads the hub's address at its start."""
    return in_process(LOOK_UP, endpoint, cache, json.dumps(wanted))


def in_process(code, endpoint, cache, *arguments):
    """What Python prints that finds the hub at `endpoint`."""
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=os.environ | own, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def folder_in_process(endpoint, cache, wanted, marker):
    """As look_up, the folder of owner/clip by common.metrics.clip_scores."""
    code = f"from common.metrics import clip_scores as c; print(c.folder_of('owner/clip', None, c.{wanted}, '{marker}'))"
    return Path(in_process(code, endpoint, cache)[0])


def test_one_sort_of_weights_of_each_part_is_wanted():
    assert set(wanted_files(FILES)) == EXPECTED


@pytest.mark.exhaustive
def test_a_pipeline_is_downloaded_once_and_without_what_jobs_do_not_read(endpoint, tmp_path):
    (folder,) = look_up(endpoint, tmp_path, ("owner/pipeline", COMMIT))
    found = {os.path.relpath(os.path.join(root, file), folder) for root, _, files in os.walk(folder) for file in files}
    assert found == EXPECTED and folder.endswith(COMMIT)
    nowhere = "http://127.0.0.1:9"  # no connection any more
    assert look_up(nowhere, tmp_path, ("owner/pipeline", COMMIT)) == [folder]
    (line,) = look_up(nowhere, tmp_path / "empty", ("owner/pipeline", COMMIT))
    assert line.startswith("error: The hub repository 'owner/pipeline' cannot be read (") and line.endswith("=<folder>.")


@pytest.mark.exhaustive
def test_of_a_model_its_settings_and_one_set_of_weights_are_downloaded(endpoint, tmp_path):
    """The settings alone first, for another model's processor; without a connection what is there is found."""
    folder = folder_in_process(endpoint, tmp_path, "settings_files", "preprocessor_config.json")
    assert {path.name for path in folder.iterdir()} == CLIP_SETTINGS
    assert folder_in_process(endpoint, tmp_path, "wanted_model_files", "config.json") == folder
    assert {path.name for path in folder.iterdir()} == CLIP_SETTINGS | {"model.safetensors"}
    assert folder_in_process("http://127.0.0.1:9", tmp_path, "wanted_model_files", "config.json") == folder


def test_what_cannot_be_downloaded_is_told_in_one_line(endpoint, tmp_path):
    lines = look_up(
        endpoint, tmp_path, ("owner/gated", None), ("owner/absent", None), ("owner/pipeline", "v9"), ("owner/words", None)
    )
    expected = [
        "'owner/gated' is gated: accept its licence on its page and log in",
        "'owner/absent' does not exist, or is private: check the name and log in",
        "'owner/pipeline' has no revision 'v9': give a commit, branch or tag of it",
        "'owner/words' has no model_index.json: it is not a diffusers pipeline",
    ]
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(f"error: The hub repository {start}")
    assert all("teacher.path=<folder>" in line for line in lines[:3])


@pytest.mark.exhaustive
def test_a_commit_is_told_by_the_hub_or_else_by_its_cache(endpoint, tmp_path):
    code = (
        "from common.models.hub import commit_of as c\n"
        "print(*(c('owner/pipeline', r) for r in (None, 'f' * 40)), c('a/absent', None))"
    )
    told = [f"{COMMIT} {'f' * 40} None"]
    nowhere = "http://127.0.0.1:9"
    assert in_process(code, endpoint, tmp_path) == told
    assert in_process(code, nowhere, tmp_path) == [f"None {'f' * 40} None"]  # nothing was downloaded
    look_up(endpoint, tmp_path, ("owner/pipeline", None))
    assert in_process(code, nowhere, tmp_path) == told


@pytest.mark.exhaustive
def test_a_repository_that_moves_on_while_a_job_begins_is_told(endpoint, tmp_path):
    code = """
from common.models.hub import COMMITS, InputError, commit_of, find_folder
commit_of("owner/pipeline", None)
COMMITS["owner/pipeline", None, "model"] = "f" * 40
try:
    find_folder("owner/pipeline")
except InputError as error:
    print(error)
"""
    (line,) = in_process(code, endpoint, tmp_path)
    assert line == "The hub repository 'owner/pipeline' has changed since this command began; run it again."


@pytest.mark.exhaustive
def test_settings_are_checked_before_weights_are_loaded(endpoint, tmp_path):
    (line,) = look_up(endpoint, tmp_path, ["owner/unknown", None])
    assert line.startswith("error: ") and "unet/config.json sets sharpness=3, which this project does not know" in line
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".bin", ".safetensors", ".index.json"))]
