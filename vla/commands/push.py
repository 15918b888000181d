"""`vla push`: uploads a checkpoint to the hub, after listing its files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from vla.errors import InputError
from vla.models.hub import FILES, HUB_NAME, LEROBOT_FILES, card, checkpoint_of, write_config


def push(*, policy: str, repo: str, license: str, private: bool, dry_run: bool) -> None:
    """Uploads a checkpoint with its model card to `repo` on the hub; with `dry_run` only prints both.

    The state for resuming training is not uploaded.

    Raises:
        InputError: `policy` is not a checkpoint, `repo` is not a valid name, or the hub rejects the upload.
    """
    if not re.fullmatch(HUB_NAME, repo):
        raise InputError(f"repo is written user/model, not {repo!r}")
    if not Path(policy).is_dir():
        raise InputError(f"there is no folder {policy}")
    checkpoint = checkpoint_of(Path(policy))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in FILES[1:]:
            (folder / name).symlink_to((checkpoint / name).resolve())
        text = card(checkpoint, license).replace("user/model", repo)
        write_config(folder, json.loads((checkpoint / "config.json").read_text()))
        (folder / "README.md").write_text(text)
        names = sorted([*FILES, *LEROBOT_FILES, "README.md"])
        sizes = {name: (folder / name).stat().st_size for name in names}
        print(f"{checkpoint} -> {repo}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB")
        print("\n".join(f"  {size:>12,}  {name}" for name, size in sizes.items()))
        if dry_run:
            print(f"\n{text}\nNothing was uploaded: dry_run=false does.")
            return
        _upload(folder, repo, private)


def _upload(folder: Path, repo: str, private: bool) -> None:
    from httpx import TransportError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a vla checkpoint")
    except HfHubHTTPError as error:
        reason = error.server_message or str(error).splitlines()[0]
        raise InputError(f"the hub refuses {repo}: {reason}; log in with `hf auth login`") from error
    except (OSError, TransportError) as error:
        raise InputError(f"the hub cannot be reached: {error}") from error
    print(f"uploaded: https://huggingface.co/{repo}")
