"""Asks a served page as programs do: by HTTP, as Gradio's protocol has it."""

import io
import json
import time

import httpx
from PIL import Image

JSON = {"content-type": "application/json"}  # which is written here, as half a character must go in
REQUEST = {
    "prompt": "a red dress",
    "negative_prompt": "",
    "num_images": 1,
    "steps": 2,
    "sampler": "ddim",
    "karras": False,
    "guidance_scale": 3,
    "guidance_start": 0,
    "guidance_stop": 1,
    "seed": 5,
    "random_seed": False,
    "begin": None,
    "strength": 0.8,
}


def ask(page, **changes):
    """What becomes of a request: its outputs, or the text that a user is shown; warnings as well."""
    with httpx.Client(base_url=page.address, timeout=120) as client:
        return follow(client, list({**REQUEST, **changes}.values()), str(time.monotonic_ns()))


def join(client, data, session):
    events = client.get("/config").json()["dependencies"]
    [number] = [event["id"] for event in events if event["api_name"] == "draw"]
    body = {"fn_index": number, "data": data, "session_hash": session}
    return client.post("/gradio_api/queue/join", content=json.dumps(body), headers=JSON)


def follow(client, data, session):
    joined = join(client, data, session)
    if joined.status_code != 200:
        return None, joined.json()["detail"], []
    warnings = []
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as lines:
        for line in lines.iter_lines():
            message = json.loads(line[5:]) if line.startswith("data:") else {}
            if message.get("msg") == "log":
                warnings.append(message["log"])
            if message.get("msg") == "process_completed":
                output = message["output"]
                return output.get("data"), output.get("error"), warnings
    raise AssertionError("the stream ended")


def fetched(page, file):
    return httpx.get(f"{page.address}/gradio_api/file={file['path']}").raise_for_status().content


def uploaded(page, content, name="picture.png"):
    """A file as a browser sends it; what a request then holds in its place."""
    sent = httpx.post(f"{page.address}/gradio_api/upload", files={"files": (name, content)}, timeout=60)
    return {"path": sent.raise_for_status().json()[0], "meta": {"_type": "gradio.FileData"}}


def png(pixels):
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def pictures(page, data):
    files = [each["image"] for each in data[2]]
    return [Image.open(io.BytesIO(fetched(page, file))) for file in files]
