"""Checkpoints of long work, and weights as safetensors; every file is written beside its name and then renamed.

Called by prior training, the part searches, retraining and whoever writes a result. Reading never runs a pickle of
unknown classes.
"""

import io
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ops.files import written_beside

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def save_checkpoint(path: Path | str, state: dict[str, Any]) -> None:
    """Save tensors, numbers, strings and containers of them; `path` never holds a partial file."""
    buffer = io.BytesIO()  # torch's own writer hides why a file could not be written
    torch.save(state, buffer)
    with written_beside(path) as beside:
        beside.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path | str, *, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Load what `save_checkpoint` or another project's `torch.save` wrote, weights only.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or holds anything else than tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    _refuse_inflated(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is odd in a file that is damaged; the error says it better
            state = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged pickle makes torch raise nearly every kind
        raise ValueError(f"checkpoint {path} is damaged or not weights-only: {_cause(error)}") from error
    if not isinstance(state, dict):
        raise ValueError(f"checkpoint {path} must hold a dictionary, got {type(state).__name__}")
    return state


def _refuse_inflated(path: Path) -> None:
    """Refuse an archive whose entries are larger than the file: `torch.save` does not compress."""
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError, OSError):
        return  # the format of old checkpoints, or damage that torch will refuse
    if claimed > path.stat().st_size:
        raise ValueError(
            f"checkpoint {path} is damaged or not weights-only: its entries claim {claimed} bytes in a file of "
            f"{path.stat().st_size}"
        )


@contextmanager
def restoring(path: Path | str) -> Iterator[None]:
    """Turn what a state of other or damaged work raises while it is restored into one error that names its file.

    Raises:
        ValueError: an entry is missing, or is not what it must be.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"checkpoint {path} does not hold the state of this work: {reason}") from error


def _cause(error: Exception) -> str:
    """Return torch's reason in one sentence, without its advice to load the file unsafely."""
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    return reason.splitlines()[0].split(". ")[0]


def save_weights(path: Path | str, weights: dict[str, Tensor], *, metadata: dict[str, str] | None = None) -> None:
    """Save tensors as safetensors; tensors that share memory are stored once, under the first of their names."""
    seen: set[int] = set()
    unique = {}
    for name, tensor in weights.items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        unique[name] = tensor.detach().cpu().contiguous()
    with written_beside(path) as beside:
        beside.write_bytes(to_bytes(unique, metadata=metadata))


def load_weights(path: Path | str) -> dict[str, Tensor]:
    """Load the tensors of a safetensors file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not safetensors, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights {path} do not exist")
    try:
        return load_file(path)
    except (SafetensorError, OSError, LookupError, ValueError, RuntimeError) as error:
        raise ValueError(f"weights {path} cannot be read: {error}") from error


def fill_by_name(
    module: nn.Module, tensors: Mapping[str, Tensor], problem: str, *, optional: Collection[str] = ()
) -> None:
    """Copy tensors into the parameters and buffers of `module` of the same names, in their number type.

    Tensors that the module shares may be given under any one of their names.

    Args:
        module: changed in place.
        tensors: by name.
        problem: begins the message of an error.
        optional: names that may be missing.

    Raises:
        ValueError: a name is missing or unknown, or a tensor has another shape.
    """
    own = module.state_dict()
    first_name: dict[int, str] = {}
    for name, tensor in own.items():
        first_name.setdefault(tensor.data_ptr(), name)
    given = {own[name].data_ptr() for name in tensors if name in own}
    missing = [name for pointer, name in first_name.items() if pointer not in given and name not in optional]
    unknown = [name for name in tensors if name not in own]
    wrong = [name for name, tensor in tensors.items() if name in own and tensor.shape != own[name].shape]
    if missing or unknown or wrong:
        raise ValueError(f"{problem}: missing {missing[:3]}, unknown {unknown[:3]}, of another shape {wrong[:3]}")
    try:
        module.load_state_dict(dict(tensors), strict=False)
    except RuntimeError as error:  # sparse or quantised tensors, for example
        raise ValueError(f"{problem}: {error}") from error


def build_within(build: Callable[[], ModuleT], tensors: Mapping[str, Tensor], problem: str) -> ModuleT:
    """Build a module whose sizes come from a file, unless it would be far larger than what the file holds.

    Somewhat larger ones are built: that names are missing is told better when it is filled.

    Args:
        build: makes the module; called on torch's meta device first, where nothing is allocated.
        tensors: of the file.
        problem: begins the message of an error.

    Raises:
        ValueError: the sizes are impossible, or the module would have more than a million numbers and twice those of
            the file.
    """
    try:
        with torch.device("meta"):
            wanted = sum(parameter.numel() for parameter in build().parameters())
    except ValueError as error:
        raise ValueError(f"{problem}: {error}") from error
    held = sum(min(tensor.numel(), _num_stored(tensor)) for tensor in tensors.values())
    if wanted > 2 * held + 1_000_000:
        raise ValueError(f"{problem}: its sizes ask for {wanted} numbers, the file holds {held}")
    return build()


def _num_stored(tensor: Tensor) -> int:
    """Return how many numbers lie behind a tensor; a shape may claim more."""
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        return 0
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def load_metadata(path: Path | str) -> dict[str, str]:
    """Load what `save_weights` was given as metadata.

    Raises:
        ValueError: the file is not safetensors, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"weights {path} cannot be read: {error}") from error
