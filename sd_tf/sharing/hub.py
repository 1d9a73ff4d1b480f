"""Uploads a model to the Hugging Face hub in one commit: weights, tokenizer, schedule and model card."""

import contextlib
import re
import tempfile
from pathlib import Path

from sd_tf.checkpoints.sources import HUB_ID
from sd_tf.errors import InputError, argument, shown
from sd_tf.files import is_inside, is_regular, read_bytes, read_text, reason, write_text
from sd_tf.images import save_png
from sd_tf.sharing.card import Example, model_card
from sd_tf.sharing.facts import facts_of, folder_of

CARD = "README.md"
NEW_CARD = "new"  # value of `card`: write one, whatever is there
LARGEST_CARD, LARGEST_PICTURE = 1_000_000, 20_000_000  # bytes
MOST_PROMPTS = 12
GARMENT_PROMPTS = ("a red dress", "a blue bag", "a green coat", "an ankle boot")
PICTURE = re.compile(r"[\w./-]+\.(?:png|jpe?g|webp|gif)")  # a file that a card shows
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
LONGEST_CHAIN = 10  # exceptions behind an exception


def push(
    model,
    repo_id: str,
    traits_of,
    *,
    private=False,
    token=None,
    revision=None,
    create_pr=False,
    commit_message="Upload a model of sd_tf",
    card=None,
    license=None,
    base_model=None,
    prompts=None,
    dtype="float32",
    max_shard_size="10GB",
) -> str:
    """Uploads a model; see `push_to_hub` of a family's class for the other arguments.

    Args:
        traits_of: `traits_of(model, folder)` -> the `Traits` of a model that was saved in that folder.
    """
    _check(model, repo_id, license, base_model, revision, create_pr)
    prompts = _checked_prompts(prompts)
    own_card = _own_card(model, card)
    from huggingface_hub import HfApi, get_token  # slow to import

    if token is None and get_token() is None:
        raise InputError("there is no token for the hub: log in with hf auth login, or set HF_TOKEN")
    api = HfApi(token=token, library_name="sd_tf")
    with tempfile.TemporaryDirectory(prefix="sd_tf-") as folder:
        folder = Path(folder)
        model.save(folder, dtype, max_shard_size)
        parts = [path.name for path in folder.iterdir() if path.is_dir()]
        with _explaining(repo_id):
            _make_repository(api, repo_id, private, revision, create_pr)
            keeps_card = card is None and api.file_exists(repo_id, CARD, revision=revision)
        if own_card is not None and not keeps_card:
            _copy_card(own_card, folder)
        elif not keeps_card:
            _write_card(model, folder, repo_id, traits_of, license, base_model, prompts)
        with _explaining(repo_id):
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
                delete_patterns=[f"{part}/*" for part in parts],  # of an earlier model
            )
    if create_pr:
        return commit.pr_url
    url = f"{api.endpoint}/{repo_id}"
    return url if revision is None else f"{url}/tree/{revision}"


# -- arguments ------------------------------------------------------------------------------------------


def _check(model, repo_id, license, base_model, revision, create_pr):
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    for name, value in (("repo_id", repo_id), ("base_model", base_model)):
        if name == "base_model" and value is None:
            continue
        try:
            if not isinstance(value, str) or not HUB_ID.fullmatch(value):
                raise HFValidationError("it has two parts of letters, digits, '-', '_' and '.'")
            validate_repo_id(value)
        except HFValidationError as error:
            flag = "--to" if name == "repo_id" else None
            raise InputError(
                f"{argument(name, flag)} is {shown(value)}: give organisation/name ({reason(error)})"
            ) from None
    if license is not None and not (isinstance(license, str) and LICENSE.fullmatch(license)):
        raise InputError(
            f"{argument('license')} is {shown(license)}: give the hub's identifier, such as apache-2.0"
        )
    if create_pr and revision is not None:
        raise InputError(f"{argument('create_pr')} and {argument('revision')} are both given: leave one out")
    if model.has_adaptations:
        raise InputError(
            f"the model has LoRAs ({', '.join(map(shown, model.adaptations.weights))}): merge them with "
            "model.adaptations.fuse(), or remove them, before it is shared"
        )


def _checked_prompts(prompts):
    """The prompts to draw, as a list; None if the caller named none."""
    if prompts is None:
        return None
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if len(prompts) > MOST_PROMPTS or not all(isinstance(each, str) for each in prompts):
        raise InputError(
            f"{argument('prompts', '--prompt')} is {shown(prompts)}: give up to {MOST_PROMPTS} strings"
        )
    return prompts


def _own_card(model, card):
    """The file of a card that the user wrote, or None."""
    if card == NEW_CARD:
        return None
    if card is not None:
        if not is_regular(card):
            raise InputError(
                f"{argument('card')} is {shown(str(card))}: give a Markdown file, or {NEW_CARD!r}"
            )
        return Path(card)
    folder = folder_of(model)
    return folder / CARD if folder is not None and is_regular(folder / CARD) else None


# -- the card -------------------------------------------------------------------------------------------


def _copy_card(file, folder):
    """Copies a card, and the pictures beside it that it shows."""
    text = read_text(file, LARGEST_CARD)
    write_text(folder / CARD, text)
    for name in sorted(set(PICTURE.findall(text))):
        picture = file.parent / name
        if is_regular(picture) and is_inside(file.parent, picture):
            copy = folder / picture.resolve().relative_to(file.parent.resolve())
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(read_bytes(picture, LARGEST_PICTURE, file.parent))


def _write_card(model, folder, repo_id, traits_of, license, base_model, prompts):
    facts = facts_of(model)
    if prompts is None:
        prompts = GARMENT_PROMPTS if facts.draws_garments else ()
    traits, examples = traits_of(model, folder), _draw(model, folder, list(prompts))
    write_text(folder / CARD, model_card(repo_id, traits, facts, examples, license, base_model))


def _draw(model, folder, prompts):
    """Draws a picture for each prompt, with the default settings."""
    if not prompts:
        return []
    (folder / "examples").mkdir()
    examples = []
    for number, (prompt, image) in enumerate(
        zip(prompts, model.generate(prompts, progress=False), strict=True), 1
    ):
        example = Example(f"examples/{number}.png", prompt)
        save_png(folder / example.file, image, {"prompt": prompt, "seed": 0})
        examples.append(example)
    return examples


# -- the hub --------------------------------------------------------------------------------------------


def _make_repository(api, repo_id, private, revision, create_pr):
    """Makes the repository and the branch, unless they are there."""
    if create_pr:  # of a repository that may be somebody else's
        return
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and not api.model_info(repo_id).private:
        raise InputError(
            f"{repo_id} is on the hub already, and public: make it private there, or leave "
            f"{argument('private')} out"
        )
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)


@contextlib.contextmanager
def _explaining(repo_id):
    """Within the block, whatever goes wrong between here and the hub is an `InputError` with a way out."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # huggingface_hub and its HTTP library raise their own kinds
        raise InputError(_explained(repo_id, error)) from None


def _explained(repo_id, error):
    response = _response_of(error)
    if response is None:
        return (
            f"{repo_id} could not be uploaded ({reason(error)}): check the network, and HF_ENDPOINT if it is "
            "set"
        )
    status = response.status_code
    said = f"the hub answers {status}{_message_of(response)}"
    ways_out = {
        400: "correct what it names; its model card's metadata are checked as well",
        401: "the token is not valid: log in with hf auth login, or set HF_TOKEN",
        403: "the token may not write there: take one with write access, or another name",
        404: "there is no such repository or revision, or the token may not see it: check the name",
        409: "somebody else has changed it meanwhile: try again",
        413: f"a file is too large: give a smaller {argument('max_shard_size')}",
        429: "too many requests: wait some minutes, then try again",
    }
    return f"{repo_id} could not be uploaded, {said}: {ways_out.get(status, 'try again later')}"


def _response_of(error):
    """The hub's response behind an exception, or None."""
    for _ in range(LONGEST_CHAIN):
        response = getattr(error, "response", None)
        if response is not None and hasattr(response, "status_code"):
            return response
        error = error.__cause__ or error.__context__
        if error is None:
            return None
    return None


def _message_of(response):
    """The hub's own words, in brackets."""
    said = response.headers.get("X-Error-Message")
    return f" ({shown(said, 200)})" if said else ""
