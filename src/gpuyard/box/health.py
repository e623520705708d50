"""Whether a box is what its offer promised: GPU, disk, and the way to the bucket, measured within seconds.

``python3 -c "$(cat health.py)" < request.json`` prints one JSON object, ``{"checks": [...]}``. It runs on a box that
has nothing of gpuyard yet: one file, the standard library of Python 3.10, and the GPU's driver, which is asked directly
(``libcuda.so.1``), so that no toolkit is needed. Each kind of check has a process and a time limit of its own, because
a broken GPU may hang or end whoever asks it.

The request is one JSON object; every key may be left out, and what is not asked for is not judged:

- ``gpu_count``, ``gpu_ram_gb``: what the offer promised, the memory for each GPU
- ``gpu_bandwidth_gb_s``, ``disk_mb_s``, ``disk_free_gb``, ``network_mb_s``: the least that will do
- ``emulated``: whether the box is known to be the sandbox's, which has no GPU
- ``driver_comes``: whether a driver may be missing now, since a role installs it
- ``put``, ``get``: signed addresses of an object in the bucket, to measure the way there and back; never printed
- ``data``: paths that have to be there and hold something; ``python``: the environment whose torch has to use the GPUs

A check is ``{"name", "state", "found", "wanted", "why"}`` with the states ``ok``, ``failed`` and ``skipped``.
"""

from __future__ import annotations

import ctypes
import fcntl
import http.client
import json
import mmap
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

LIMITS_S = {"gpu": 60.0, "disk": 20.0, "network": 40.0, "data": 20.0, "torch": 180.0}
# Gigabytes as they are advertised, and a part that the driver, the firmware or error correction keeps for itself.
_MEMORY_SHARE = 0.9
_GB, _MB, _MIB = 10**9, 10**6, 1 << 20
_NUMBERS = 1 << 18  # results of the kernel that are compared
_ROUNDS = 256
_THREADS = 256
_COPY_BYTES = 256 * _MIB
_COPIES = 20
_DISK_BYTES = 64 * _MIB
_DISK_S = 5.0
_NETWORK_BYTES = 8 * _MIB
# What is faster by so much after the first part is not measured any longer.
_CLEARLY = 4.0
_DISK_FIRST_BYTES = 16 * _MIB
_NETWORK_FIRST_BYTES = _MIB
_PIECE = 256 * 1024
_SMI_S = 20.0
_FOLDER = "/var/tmp"  # on a disk, where /tmp may be memory
_NVIDIA = "0x10de"
NO_ANSWER = "no answer"
_STAND_IN = "this box is the sandbox's, which has no GPU"

# Whole numbers and floating point, none of which is rounded, so that every result has one right value.
PTX = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry check(.param .u64 out, .param .u32 count)
{
    .reg .pred %p<3>;
    .reg .b32 %r<11>;
    .reg .f32 %f<4>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [out];
    ld.param.u32 %r1, [count];
    cvta.to.global.u64 %rd2, %rd1;
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.u32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra DONE;
    mov.u32 %r6, %r5;
    and.b32 %r7, %r5, 255;
    cvt.rn.f32.u32 %f1, %r7;
    mov.f32 %f2, 0f00000000;
    mov.f32 %f3, 0f00000000;
    mov.u32 %r8, 0;
LOOP:
    mad.lo.u32 %r6, %r6, 1664525, 1013904223;
    fma.rn.f32 %f2, %f3, %f1, %f2;
    add.rn.f32 %f3, %f3, 0f3F800000;
    add.u32 %r8, %r8, 1;
    setp.lt.u32 %p2, %r8, 256;
    @%p2 bra LOOP;
    cvt.rzi.u32.f32 %r9, %f2;
    xor.b32 %r10, %r6, %r9;
    mul.wide.u32 %rd3, %r5, 4;
    add.u64 %rd4, %rd2, %rd3;
    st.global.u32 [%rd4], %r10;
DONE:
    ret;
}
\0"""

Check = dict[str, str]


def check(name: str, state: str, found: str = "", wanted: str = "", why: str = "") -> Check:
    """Return one check as it is printed."""
    return {"name": name, "state": state, "found": found, "wanted": wanted, "why": why}


def judged(name: str, value: float, least: float | None, unit: str) -> Check:
    """Return a measured number as a check; without ``least`` it is not judged."""
    wanted = "" if least is None else f"at least {least:g} {unit}"
    return check(name, "failed" if least is not None and value < least else "ok", f"{value:.4g} {unit}", wanted)


def clear(value: float, least: float | None) -> bool:
    """Return whether a first look at a number says enough: it is not judged, or far from the least that will do."""
    return least is None or value >= _CLEARLY * least


def expected_numbers() -> array[int]:
    """Return what the kernel has to compute; its rounds of ``x * a + c`` have a closed form."""
    factor, summand = 1, 0
    for _ in range(_ROUNDS):
        factor, summand = factor * 1664525 % 2**32, (summand * 1664525 + 1013904223) % 2**32
    sums = _ROUNDS * (_ROUNDS - 1) // 2
    return array("I", ((factor * i + summand) % 2**32 ^ (i & 255) * sums for i in range(_NUMBERS)))


class CudaError(Exception):
    """A call of the driver has failed; the text names the call and the driver's own word for the failure."""


class Driver:
    """The few calls of NVIDIA's driver API that are needed."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; raises :class:`CudaError` when it does not answer 0."""
        code = getattr(self._library, name)(*arguments)
        if code:
            word = ctypes.c_char_p()
            self._library.cuGetErrorName(code, ctypes.byref(word))
            raise CudaError(f"{name}: {(word.value or b'').decode() or f'error {code}'}")

    def count(self) -> int:
        """Return how many GPUs the driver shows."""
        self.call("cuInit", ctypes.c_uint(0))
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        return count.value

    def use(self, number: int) -> int:
        """Make a GPU the current one; return its memory in bytes."""
        device, context, size = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t()
        self.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(number))
        self.call("cuDeviceTotalMem_v2", ctypes.byref(size), device)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        return size.value

    def allocate(self, size: int) -> ctypes.c_uint64:
        """Return the address of ``size`` bytes of the current GPU's memory."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address

    def compute(self) -> array[int]:
        """Run the kernel on the current GPU, and return its results."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(PTX))
        self.call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(b"check"))
        out = self.allocate(4 * _NUMBERS)
        count = ctypes.c_uint(_NUMBERS)
        pointers = [ctypes.cast(ctypes.byref(value), ctypes.c_void_p) for value in (out, count)]
        shape = [ctypes.c_uint(number) for number in (_NUMBERS // _THREADS, 1, 1, _THREADS, 1, 1, 0)]
        self.call("cuLaunchKernel", function, *shape, None, (ctypes.c_void_p * 2)(*pointers), None)
        self.call("cuCtxSynchronize")
        results = array("I", bytes(4 * _NUMBERS))
        self.call("cuMemcpyDtoH_v2", ctypes.c_void_p(results.buffer_info()[0]), out, ctypes.c_size_t(4 * _NUMBERS))
        self.call("cuMemFree_v2", out)
        return results

    def bandwidth(self) -> float:
        """Return the gigabytes a second that the current GPU's memory reads and writes when it is copied."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        size = min(_COPY_BYTES, free.value // 4)
        there, back = self.allocate(size), self.allocate(size)
        spent = 0.0
        for copies in (2, _COPIES):  # the first ones wake it up
            began = time.perf_counter()
            for _ in range(copies):
                self.call("cuMemcpyDtoD_v2", there, back, ctypes.c_size_t(size))
            self.call("cuCtxSynchronize")
            spent = time.perf_counter() - began
        for address in (there, back):
            self.call("cuMemFree_v2", address)
        return 2 * size * _COPIES / max(spent, 1e-9) / _GB


def ask_smi(*words: str) -> tuple[str, int]:
    """Return what ``nvidia-smi`` prints, both ways, and its exit code; ``("", 127)`` where there is none."""
    program = shutil.which("nvidia-smi", path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/local/bin:/opt/bin")
    if not program:
        return "", 127
    done = subprocess.run(
        [program, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SMI_S, check=False
    )
    return done.stdout + done.stderr, done.returncode


def gpu_checks(request: dict[str, Any]) -> list[Check]:
    """Return the checks of all GPUs: how many, how much memory, whether they compute right, how fast memory is."""
    wanted = int(request.get("gpu_count") or 0)
    listed, _ = ask_smi("-L")
    if request.get("emulated") and "STAND-IN" in listed:
        text, _ = ask_smi("--query-gpu=memory.total", "--format=csv,noheader,nounits")
        sizes = [int(line) * _MIB for line in text.split("\n") if line.strip().isdigit()]
        return [
            *_there(sizes, wanted, request),
            *(check(name, "skipped", why=_STAND_IN) for name in ("gpu arithmetic", "gpu bandwidth")),
        ]
    try:
        driver = Driver()
    except OSError:
        return [_without_driver(wanted, bool(request.get("driver_comes")))]
    try:
        count = driver.count()
    except CudaError as error:
        return [check("gpu count", "failed", "0", str(wanted), f"the driver does not start: {error}")]
    sizes, right, speeds, trouble = [], 0, [], ""
    numbers = expected_numbers()
    for number in range(count):
        try:
            sizes.append(driver.use(number))
            results = driver.compute()
            if results == numbers:
                right += 1
            else:
                wrong = sum(1 for found, hoped in zip(results, numbers) if found != hoped)  # noqa: B905
                trouble = trouble or f"GPU {number} computes {wrong} of {_NUMBERS} results wrong"
            speeds.append(driver.bandwidth())
        except CudaError as error:
            trouble = trouble or f"GPU {number} fails in {error}"
    found = [*_there(sizes, wanted, request)]
    state = "failed" if trouble or right < count else "ok"
    found.append(check("gpu arithmetic", state, f"{right} of {count} right", f"{count} of {count}", trouble))
    if speeds:
        found.append(judged("gpu bandwidth", min(speeds), request.get("gpu_bandwidth_gb_s"), "GB/s"))
    return [*found, _state()]


def _there(sizes: list[int], wanted: int, request: dict[str, Any]) -> list[Check]:
    """Return the checks of how many GPUs there are, and of how much memory the smallest has."""
    found = [check("gpu count", "failed" if len(sizes) < wanted else "ok", str(len(sizes)), str(wanted))]
    promised = request.get("gpu_ram_gb")
    if sizes:
        least = float(promised or 0) * _MEMORY_SHARE
        shown = f"{min(sizes) / _GB:.3g} GB"
        enough = min(sizes) / _GB >= least
        found.append(check("gpu memory", "ok" if enough else "failed", shown, f"{promised:g} GB" if promised else ""))
    return found


def _without_driver(wanted: int, driver_comes: bool) -> Check:
    """Return the check of a box without a driver: the bus may still show the GPUs."""
    cards = 0
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            ours = (device / "vendor").read_text().strip() == _NVIDIA
            # 0x03: display controllers, as opposed to the sound device of the same card.
            cards += ours and (device / "class").read_text().startswith("0x03")
        except OSError:
            continue
    if driver_comes and cards >= wanted:
        return check("gpu count", "ok", str(cards), str(wanted), "seen on the bus; the role cuda brings the driver")
    on_bus = f"; the bus shows {cards} of NVIDIA's" if cards else ""
    return check("gpu count", "failed", "0", str(wanted), f"there is no driver (libcuda.so.1){on_bus}")


def _state() -> Check:
    """Return whether the GPUs report errors of memory, or are slowed down by heat or a lack of power."""
    for word in ("clocks_event_reasons", "clocks_throttle_reasons"):  # newer and older drivers
        slowed = f"{word}.hw_thermal_slowdown,{word}.hw_power_brake_slowdown"
        text, code = ask_smi(
            f"--query-gpu=ecc.errors.uncorrected.volatile.total,{slowed}", "--format=csv,noheader,nounits"
        )
        if code == 0:
            return state_of(text)
    return check("gpu state", "skipped", why="nvidia-smi does not tell")


def state_of(text: str) -> Check:
    """Return the state of the GPUs from nvidia-smi's lines ``errors, too hot, too little power``."""
    trouble = []
    for number, line in enumerate(text.strip().splitlines()):
        errors, hot, weak = (cell.strip() for cell in [*line.split(","), "", ""][:3])
        if errors.isdigit() and int(errors):
            trouble.append(f"GPU {number} has {errors} uncorrected memory errors")
        trouble += [f"GPU {number} is slowed down by heat"] if hot == "Active" else []
        trouble += [f"GPU {number} is slowed down for lack of power"] if weak == "Active" else []
    return check("gpu state", "failed" if trouble else "ok", why="; ".join(trouble))


def disk_checks(request: dict[str, Any]) -> list[Check]:
    """Return the checks of the disk: what is free, and how fast new data reaches it."""
    found = [judged("disk space", shutil.disk_usage(_FOLDER).free / _GB, request.get("disk_free_gb"), "GB free")]
    piece = mmap.mmap(-1, 4 * _MIB)  # at a page's border, as the disk wants it
    piece.write(os.urandom(len(piece)))  # zeros would be packed by some file systems
    place = Path(_FOLDER, f".gpuyard-health-{os.getpid()}")
    written, spent, least = 0, 0.0, request.get("disk_mb_s")
    handle = os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        place.unlink()
        with suppress(OSError):  # some file systems know no other way than through memory
            fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | os.O_DIRECT)
        began = time.perf_counter()
        while written < _DISK_BYTES and spent < _DISK_S:
            written += os.write(handle, piece)
            os.fdatasync(handle)
            spent = time.perf_counter() - began
            if written >= _DISK_FIRST_BYTES and clear(written / spent / _MB, least):
                break
    finally:
        os.close(handle)
    return [*found, judged("disk", written / spent / _MB, least, "MB/s")]


def network_checks(request: dict[str, Any]) -> list[Check]:
    """Return the check of the way to the bucket and back; the slower one counts."""
    if not request.get("put"):
        return [check("network", "skipped", why=str(request.get("no_network") or "there is no bucket"))]
    least = request.get("network_mb_s")
    slower = 0.0
    try:
        for size in (_NETWORK_FIRST_BYTES, _NETWORK_BYTES):
            slower = min(_transfer("PUT", str(request["put"]), os.urandom(size)), _transfer("GET", str(request["get"])))
            if clear(slower, least):
                break
    except _RefusedError as error:
        return [check("network", "skipped", why=f"the bucket refuses the test: {error}")]
    except (OSError, http.client.HTTPException) as error:
        return [check("network", "failed", NO_ANSWER, why=f"the bucket does not answer: {error}")]
    return [judged("network", slower, least, "MB/s")]


class _RefusedError(Exception):
    pass


def _transfer(method: str, address: str, body: bytes | None = None) -> float:
    """Send ``body`` as the object, or fetch it; return the megabytes a second."""
    url = urllib.parse.urlsplit(address)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=15)
    try:
        began = time.perf_counter()
        connection.request(method, f"{url.path}?{url.query}", body=body)
        answer = connection.getresponse()
        size = len(body or b"")
        while piece := answer.read(_PIECE):
            size += 0 if body else len(piece)
        if answer.status >= 300:
            raise _RefusedError(f"{answer.status} {answer.reason}")
        return size / max(time.perf_counter() - began, 1e-9) / _MB
    finally:
        connection.close()


def data_checks(request: dict[str, Any]) -> list[Check]:
    """Return the check of the data that the stages read: each path, or pattern, is there and holds something."""
    paths = [str(path) for path in request.get("data") or []]
    missing = [path for path in paths if not any(map(_holds_something, _matching(path)))]
    if missing:
        return [check("data", "failed", f"{len(paths) - len(missing)} of {len(paths)}", why=f"nothing in {missing[0]}")]
    return [check("data", "ok", f"{len(paths)} of {len(paths)}")]


def _matching(pattern: str) -> list[Path]:
    return list(Path("/").glob(pattern.lstrip("/")))


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.stat().st_size > 0


# Run by the environment's own Python. It prints one JSON object: the GPUs that torch sees, and whether they agree.
_TORCH = """
import json, os, sys
try:
    import torch
except ImportError as error:
    print(json.dumps({"why": "torch cannot be imported: %s" % error}))
    sys.exit()
found = {"version": torch.__version__, "cuda": torch.version.cuda or "", "count": torch.cuda.device_count()}
def work(rank, count):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29417")
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", rank=rank, world_size=count)
    numbers = torch.full((1 << 20,), float(rank + 1), device="cuda")
    torch.distributed.all_reduce(numbers)
    assert bool((numbers == count * (count + 1) / 2).all()), "a sum over all GPUs is wrong"
    torch.distributed.destroy_process_group()
if __name__ == "__main__":
    for number in range(found["count"]):
        ones = torch.ones(64, 64, device="cuda:%d" % number)
        if not bool((ones @ ones == 64).all()):
            found["why"] = "GPU %d multiplies matrices wrong" % number
    if found["count"] > 1 and "why" not in found:
        try:
            torch.multiprocessing.spawn(work, (found["count"],), nprocs=found["count"])
            found["nccl"] = True
        except Exception as error:
            found["why"] = "NCCL fails: %s" % str(error).strip().splitlines()[-1]
    print(json.dumps(found))
"""


def torch_checks(request: dict[str, Any]) -> list[Check]:
    """Return the checks of torch in the environment: it sees every GPU, and several of them can be summed over."""
    wanted = int(request.get("gpu_count") or 0)
    # A file, since the processes of several GPUs import the program anew.
    place = Path(_FOLDER, f".gpuyard-torch-{os.getpid()}.py")
    with place.open("x") as program:
        program.write(_TORCH)
    try:
        done = subprocess.run(
            [str(request["python"]), str(place)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    finally:
        place.unlink()
    lines = done.stdout.strip().splitlines() or ["{}"]
    try:
        found = json.loads(lines[-1])
    except ValueError:
        found = {}
    if "count" not in found:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return [check("torch", "failed", why=str(found.get("why") or last))]
    if request.get("emulated") and not found["count"]:
        return [check("torch", "skipped", f"torch {found['version']}", why=_STAND_IN)]
    why = str(found.get("why") or "")
    short = found["count"] < wanted or bool(why)
    shown = f"torch {found['version']} for CUDA {found['cuda'] or 'none'} sees {found['count']}"
    return [
        check("torch", "failed" if short else "ok", shown, f"{wanted} GPUs", why),
        *([check("nccl", "ok", f"{found['count']} GPUs agree")] if found.get("nccl") else []),
    ]


CHECKS: dict[str, Callable[[dict[str, Any]], list[Check]]] = {
    "gpu": gpu_checks,
    "disk": disk_checks,
    "network": network_checks,
    "data": data_checks,
    "torch": torch_checks,
}


def asked(request: dict[str, Any]) -> list[str]:
    """Return which kinds of checks a request asks for."""
    kinds = {"gpu": request.get("gpu_count"), "disk": True, "network": "put" in request or "no_network" in request}
    kinds.update(data=request.get("data"), torch=request.get("python"))
    return [kind for kind, wanted in kinds.items() if wanted]


def _apart(kind: str, request: dict[str, Any]) -> tuple[int, int]:
    """Begin the checks of a kind in a process of its own; return it, and where its answer can be read."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        os.setpgid(0, 0)
        try:
            found = CHECKS[kind](request)
        except subprocess.TimeoutExpired as error:
            found = [check(kind, "failed", NO_ANSWER, why=f"{Path(error.cmd[0]).name} hangs")]
        except Exception as error:  # whatever it is, the other checks count
            found = [check(kind, "failed", why=f"{type(error).__name__}: {error}")]
        with os.fdopen(writing, "w") as answer:
            json.dump(found, answer)
    finally:
        os._exit(0)


def _answer(kind: str, child: int, reading: int, began: float) -> list[Check]:
    text = b""
    while True:
        left = began + LIMITS_S[kind] - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            # It may have begun programs of its own, which go with it.
            os.killpg(child, signal.SIGKILL)
            break
        piece = os.read(reading, _PIECE)
        if not piece:
            break
        text += piece
    os.close(reading)
    # A process that hangs in the driver cannot be ended; nobody waits for it.
    os.waitpid(child, 0 if text else os.WNOHANG)
    try:
        found: list[Check] = json.loads(text)
    except ValueError:
        slow = time.monotonic() - began >= LIMITS_S[kind]
        why = f"no answer within {LIMITS_S[kind]:.0f} s" if slow else "the check was ended by a fault in the driver"
        found = [check(kind, "failed", NO_ANSWER, why=why)]
    return found


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Return ``{"checks": [...], "seconds": …}`` for a request, see the module's text. All kinds run side by side."""
    began = time.monotonic()
    sys.stdout.flush()
    running = [(kind, *_apart(kind, request)) for kind in asked(request)]
    checks = [found for kind, child, reading in running for found in _answer(kind, child, reading, began)]
    return {"checks": checks, "seconds": round(time.monotonic() - began, 2)}


def table(checks: list[Check]) -> list[str]:
    """Return checks as lines for people: what was looked at, how it stands, what was found and wanted, and why."""
    rows = []
    for one in checks:
        wanted = f"({one['wanted']} wanted)" if one["wanted"] and one["state"] == "failed" else ""
        rows.append((one["name"], one["state"], " ".join(filter(None, [one["found"], wanted, one["why"]]))))
    width = max((len(name) for name, _, _ in rows), default=0)
    return [f"{name:<{width}}  {state:<7}  {rest}".rstrip() for name, state, rest in rows]


def main() -> int:
    """Read the request from standard input, print the answer, with ``--table`` also as lines; 1 when a check failed."""
    answer = measure(json.load(sys.stdin))
    if "--table" in sys.argv[1:]:
        answer["table"] = table(answer["checks"])
    print(json.dumps(answer))
    return int(any(one["state"] == "failed" for one in answer["checks"]))


if __name__ == "__main__":
    sys.exit(main())
