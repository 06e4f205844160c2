"""Files that would run code: nothing happens, and what looks hostile is refused by name."""

import functools
import os
import pickle
import re
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from esolm.pipeline.errors import ImportCheckpointError
from esolm.pipeline.importer.archive import Archive
from esolm.pipeline.importer.importing import import_checkpoint
from esolm.pipeline.importer.inert import Inert
from esolm.pipeline.importer.recognise import Options
from esolm.pipeline.importer.unpickle import unpickle
from tests.pipeline.importer import published
from tests.pipeline.importer.published import SYSTEMS
from tests.processes import run_python


class Call:
    """Pickles as a call, which `pickle.load` would make."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args

    def __call__(self) -> None:
        """So that pickle takes the result of a call for something to call."""


class Trap:
    """Touches a file when its state is set, when it is made, and when it is filled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["path"]).touch()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def touching(canary: Path) -> dict[str, Any]:
    """Exploits by name: objects to be pickled, or the opcodes themselves."""
    command, code = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    payload = pickle.dumps(Call(os.system, command))
    shell = b"(" + text(command) + b"t"
    return {
        "os.system": Call(os.system, command),
        "builtins.eval": Call(eval, code),
        "builtins.exec": Call(exec, code),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(canary)]),
        "shutil.copyfile": Call(shutil.copyfile, "/etc/hostname", str(canary)),
        "open": Call(open, str(canary), "w"),
        "pickle.loads": Call(pickle.loads, payload),
        "nested getattr": Call(Call(getattr, Call(__import__, "os"), "system"), command),
        "torch.load": Call(torch.load, str(canary.with_suffix(".pkl"))),
        "torch.hub.load": Call(torch.hub.load, str(canary.parent), "touch"),
        "torch storage in a storage": Call(torch.storage._load_from_bytes, payload),
        "INST": b"(" + text(command) + b"ios\nsystem\n",
        "OBJ": b"(" + stack_global("os", "system") + text(command) + b"o",
        "REDUCE of STACK_GLOBAL": stack_global("posix", "system") + shell + b"R",
        "NEWOBJ": stack_global("subprocess", "Popen") + shell + b"\x81",
        "NEWOBJ_EX": stack_global("subprocess", "Popen") + shell + b"}\x92",
        "dotted name": stack_global("torch", "os.system") + shell + b"R",
        "torch._dynamo": stack_global("torch._dynamo.utils", "subprocess.getoutput") + shell + b"R",
        "torch._utils by prefix": stack_global("torch._utils", "sys.modules.get") + shell + b"R",
        "Python 2's name": b"c__builtin__\neval\n(" + text(code) + b"tR",
        "runpy": stack_global("runpy", "run_path") + shell + b"R",
        "operator": stack_global("operator", "methodcaller") + shell + b"R",
        "functools": stack_global("functools", "partial") + shell + b"R",
    }


NAMES = list(touching(Path("/canary")))


def encode(exploit: Any, protocol: int) -> bytes:
    """The opcodes that leave the exploit's result on the stack."""
    if isinstance(exploit, bytes):
        return exploit
    # Without PROTO, FRAME and STOP: opcodes that may stand anywhere.
    code = pickle._dumps(exploit, protocol)  # type: ignore[attr-defined]
    return code[2 + (9 if protocol >= 4 and code[2:3] == b"\x95" else 0) : -1]


def archive_of(path: Path, content: bytes) -> Path:
    """A file like torch.save's with this pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", "3\n")
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("protocol", [2, 4])
def test_exploit(tmp_path: Path, name: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    canary.with_suffix(".pkl").write_bytes(pickle.dumps(Call(os.system, f"touch {canary}")))
    code = encode(touching(canary)[name], protocol)
    file = archive_of(tmp_path / "a.ckpt", b"\x80\x04" + code + b".")
    with pytest.raises(ImportCheckpointError, match="Nothing of it was executed"):
        import_checkpoint(file, tmp_path / "out", Options())
    assert not canary.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "canary.pkl"]


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "nested getattr"])
def test_the_exploits_are_real(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(touching(canary)[name]))
    assert canary.exists()


@pytest.mark.parametrize("place", ["hyper_parameters", "callbacks", "state_dict", "config"])
def test_exploit_inside_an_honest_file(tmp_path: Path, place: str) -> None:
    canary = tmp_path / "canary"
    exploit = Call(os.system, f"touch {canary}")
    system = SYSTEMS["esolm_b"]
    weights = published.random_weights(True, 1)
    config = published.configuration(system)
    content = published.checkpoint(system, weights, weights, config)
    if place == "config":
        config["model"]["n_heads"] = exploit
    elif place == "state_dict":
        content["state_dict"]["backbone.evil"] = exploit
    else:
        content[place] = exploit
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ImportCheckpointError, match=r"(posix|nt)\.system"):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())
    assert not canary.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_command_refuses_an_exploit(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"state_dict": Call(os.system, f"touch {canary}")}, tmp_path / "a.ckpt")
    out = str(tmp_path / "out")
    done = run_python("-m", "esolm", "import", str(tmp_path / "a.ckpt"), "--out", out)
    assert done.returncode == 64
    assert "system" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_an_object_that_acts_when_it_is_filled_stays_inert(tmp_path: Path, quick: None) -> None:
    """A class outside the standard library is a name and a state, like an honest tokenizer."""
    canary = tmp_path / "canary"
    published.save(tmp_path / "a.ckpt", SYSTEMS["esolm_b"], callbacks={"trap": Trap(str(canary))})
    import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())
    assert not canary.exists()
    with Archive(tmp_path / "a.ckpt") as archive:
        trap = archive.content["callbacks"]["trap"]
    assert isinstance(trap, Inert)
    assert trap.name.endswith("test_hostile.Trap")
    assert trap.state == {"path": str(canary)}


def test_no_state_can_be_given_to_what_torch_uses() -> None:
    """BUILD sets attributes of its target; here no target is a real function."""
    rebuild = stack_global("torch._utils", "_rebuild_tensor_v2")
    code = rebuild + b"N}" + text("__defaults__") + b"Ns\x86b."
    before = torch._utils._rebuild_tensor_v2.__defaults__
    with pytest.raises(ImportCheckpointError, match="damaged"):
        unpickle(b"\x80\x04" + code)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x04.",  # nothing on the stack
        b"\x80\x04N",  # no end
        b"\x80\x04(.",  # a mark for a result
        b"\x80\x04]N(e.",  # items for None
        b"\x80\x04h\x07.",  # a memo that was never written
        b"\x80\x04}" + text("key") + b"s.",  # a key without a value
        b"\x80\x04}]Ns.",  # a list for a key
        b"\x80\x04\x82\x01.",  # an extension code
        b"\x80\x04N\x85\x85Q.",  # a storage that is none
        b"Pid\n.",  # a persistent id in text
        stack_global("torch._utils", "_rebuild_tensor_v2") + b"NNN\x87R.",
        b"\x80\x04\xff.",
        b"",
    ],
)
def test_malformed_pickles(code: bytes) -> None:
    with pytest.raises(ImportCheckpointError):
        unpickle(code)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (1, (4,), (1,)), (-1, (2,), (1,)), (0, (2, 2), (4, 1)), (4, (9,), (0,))],
)
def test_tensors_outside_their_storage(
    offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    """as_strided would read memory that is not the file's."""
    from esolm.pipeline.importer.inert import Global, Storage, call

    rule = Global("torch._utils._rebuild_tensor_v2")
    storage = Storage("0", torch.float32, 4)
    with pytest.raises(ImportCheckpointError, match="wrong way"):
        call(rule, (storage, offset, size, stride, False, {}))


def test_one_element_in_many_places_is_never_read() -> None:
    """Within its storage, but it could be larger than memory."""
    from esolm.pipeline.importer.inert import Global, Storage, call

    rule = Global("torch._utils._rebuild_tensor_v2")
    tensor = call(rule, (Storage("0", torch.float32, 4), 0, (1 << 60,), (0,), False, {}))
    assert isinstance(tensor, Inert)


def tagged() -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.tag = 1  # type: ignore[attr-defined]
    return parameter


HONEST: dict[str, Any] = {
    "partial": functools.partial(print, 1, end=""),
    "regular expression": re.compile("a+", re.IGNORECASE),
    "sparse": torch.zeros(3, 3).to_sparse(),
    "sparse rows": torch.zeros(3, 3).to_sparse_csr(),
    "expanded": torch.zeros(1).expand(10),
    "complex": torch.zeros(2, dtype=torch.complex64),
    "meta": torch.zeros(2, device="meta"),
    "float8": torch.zeros(2).to(torch.float8_e5m2),
    "unsigned": torch.zeros(2, dtype=torch.uint16),
    "tagged parameter": tagged(),
}


@pytest.mark.parametrize("name", list(HONEST))
def test_honest_objects_beside_the_weights(tmp_path: Path, quick: None, name: str) -> None:
    published.save(tmp_path / "a.ckpt", SYSTEMS["esolm_b"], callbacks={"held": [HONEST[name]]})
    import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())
    assert (tmp_path / "out" / "bundle" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["sparse", "expanded", "complex", "partial"])
@pytest.mark.parametrize("place", ["state_dict", "ema"])
def test_such_objects_are_no_weights(tmp_path: Path, name: str, place: str) -> None:
    system = SYSTEMS["esolm_b"]
    weights = published.random_weights(True, 1)
    content = published.checkpoint(system, weights, weights, published.configuration(system))
    if place == "ema":
        content["ema"]["shadow_params"][0] = HONEST[name]
    else:
        content["state_dict"]["backbone.vocab_embed.embedding"] = HONEST[name]
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ImportCheckpointError, match=r"vocab_embed\.embedding'"):
        import_checkpoint(tmp_path / "a.ckpt", tmp_path / "out", Options())


def test_a_partial_that_is_called(tmp_path: Path) -> None:
    """Kept it does nothing; called it is what it holds."""
    canary = tmp_path / "canary"
    partial = stack_global("functools", "partial") + stack_global("os", "system")
    code = partial + text(f"touch {canary}") + b"\x86R)R"
    pickle.loads(b"\x80\x04" + code + b".")
    assert canary.exists()
    canary.unlink()
    file = archive_of(tmp_path / "a.ckpt", b"\x80\x04" + code + b".")
    with pytest.raises(ImportCheckpointError, match="Nothing of it was executed"):
        import_checkpoint(file, tmp_path / "out", Options())
    assert not canary.exists()


def test_nested_tuples_as_a_key_are_refused() -> None:
    """Each doubles the one before: hashing the last would take for ever."""
    nested = b")" + b"2\x86" * 60
    with pytest.raises(ImportCheckpointError, match="no plain value"):
        unpickle(b"\x80\x04}" + nested + b"Ns.")
