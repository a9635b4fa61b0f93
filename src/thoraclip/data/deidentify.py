"""Patient ids of DICOM files, made unreadable with a secret that stays on this machine."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from thoraclip.errors import InputError

__all__ = ["local_salt", "pseudonym", "salt_file"]


def salt_file() -> Path:
    """Where the secret lies unless another file is named: `~/.thoraclip/patient-salt`."""
    return Path.home() / ".thoraclip" / "patient-salt"


def local_salt(file: Path | None = None) -> bytes:
    """The secret of this machine (or of a file that is shared on purpose); made, readable for this user, at first use.

    Raises:
        InputError: the named file is not there, the user's own cannot be made, or it holds no secret.
    """
    path = file or salt_file()
    if file is not None and not file.is_file():
        raise InputError(
            f"{file}: no such salt file; name an existing one (without --salt, this user's own is {salt_file()})"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            salt = bytes.fromhex(path.read_text(encoding="ascii").strip())
        else:
            salt = secrets.token_bytes(32)
            with os.fdopen(handle, "w", encoding="ascii") as stream:
                stream.write(salt.hex() + "\n")
    except OSError as error:
        raise InputError(f"{path}: the patient salt cannot be kept ({error.strerror}); name another --salt") from error
    except ValueError as error:
        raise InputError(f"{path}: holds no patient salt (hexadecimal digits); name another --salt") from error
    if len(salt) < 16:
        raise InputError(f"{path}: a patient salt of {len(salt)} bytes is too short; 16 or more are needed")
    return salt


def pseudonym(patient_id: str, salt: bytes) -> str:
    """`dicom-` and 16 hexadecimal digits: HMAC-SHA-256 (RFC 2104) of the id under the secret, cut to 64 bits."""
    return "dicom-" + hmac.new(salt, patient_id.encode(), hashlib.sha256).hexdigest()[:16]
