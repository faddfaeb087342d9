"""What the Linux kernel offers to confine a process, called through ctypes.

Every function here acts on the calling process and raises OSError when the kernel refuses. None needs privileges of the
host: `unshare` wants root or unprivileged user namespaces, `landlock` Linux 5.13, `filter_calls` x86-64 or AArch64.
The numbers are those of the kernel's user-space headers.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Any

NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
_ANY_NAMESPACE = 0x7E020000
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _call(name: str, *arguments: Any) -> int:
    return _checked(_libc.syscall(ctypes.c_long(_GENERIC[name]), *arguments), name)


_GENERIC = {
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
    "mount_setattr": 442,
}
"""System calls whose numbers are the same on every architecture."""


# Namespaces and mounts


def unshare(flags: int) -> None:
    """New namespaces for this process; `NEWPID` takes effect for its next child."""
    _checked(_libc.unshare(flags), "unshare")


def enter_user_namespace(flags: int) -> None:
    """A new user namespace in which only this user exists, together with the namespaces in `flags`."""
    uid, gid = os.getuid(), os.getgid()
    unshare(NEWUSER | flags)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def make_read_only(writable: str, size: int, uid: int, gid: int) -> None:
    """In a new mount namespace: every mount becomes read-only, `writable` an empty folder in memory, /proc empty.

    Args:
        writable: An existing folder.
        size: Bytes it holds at most.
        uid: Its owner.
        gid: Its group.
    """
    private, nosuid_nodev = 0x40000 | 0x4000, 2 | 4
    _checked(_libc.mount(None, b"/", None, ctypes.c_ulong(private), None), "mount")
    read_only = struct.pack("QQQQ", 1, 0, 0, 0)  # MOUNT_ATTR_RDONLY
    _call("mount_setattr", -1, b"/", 0x8000, read_only, ctypes.c_size_t(len(read_only)))  # AT_RECURSIVE
    options = f"size={size},nr_inodes=4096,mode=700,uid={uid},gid={gid}".encode()
    path = os.fsencode(writable)
    _checked(_libc.mount(b"tmpfs", path, b"tmpfs", ctypes.c_ulong(nosuid_nodev), options), "mount")
    # Of the processes outside; read-only (1), for a user namespace may not loosen what it copies.
    _checked(_libc.mount(b"tmpfs", b"/proc", b"tmpfs", ctypes.c_ulong(nosuid_nodev | 1), b"size=4096"), "mount")


# Privileges


def _prctl(option: int, *arguments: int) -> None:
    words = [ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:4]]
    _checked(_libc.prctl(option, *words), "prctl")


def die_with_parent() -> None:
    """SIGKILL when the parent ends. A change of user undoes it."""
    _prctl(1, 9)


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process."""
    _prctl(36, 1)


def gain_nothing() -> None:
    """No program started from here on has more privileges than this process (set-uid bits do nothing)."""
    _prctl(38, 1)


READ_ANYTHING = 1 << 2
"""CAP_DAC_READ_SEARCH: reading and listing whatever the owner of a file says."""


def become(uid: int, gid: int) -> None:
    """Another user, with no groups, for good. Capabilities stay permitted until `keep_capabilities`."""
    _prctl(8, 1)  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def keep_capabilities(wanted: int) -> None:
    """Give up every capability that is not in the set `wanted`."""
    header = struct.pack("Ii", 0x20080522, 0)
    low, high = wanted & 0xFFFFFFFF, wanted >> 32
    data = struct.pack("IIIIII", low, low, 0, high, high, 0)  # effective, permitted, inheritable; twice 32 bits
    _checked(_libc.capset(header, data), "capset")


# Landlock: https://docs.kernel.org/userspace-api/landlock.html

_EXECUTE, _WRITE, _READ, _LIST, _TRUNCATE, _IOCTL = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_BY_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""Accesses to files the kernel knows, from this version of its interface on."""


def landlock_version() -> int:
    """Version of the kernel's interface; 0 where there is none."""
    found = _libc.syscall(ctypes.c_long(_GENERIC["landlock_create_ruleset"]), None, ctypes.c_size_t(0), 1)
    return max(int(found), 0)


def landlock(version: int, readable: list[str], writable: list[str]) -> None:
    """From here on only `readable` can be read and executed, and only `writable` changed; the rest cannot be opened.

    From version 4 on also no TCP, from version 6 on no signal to a process outside.

    Args:
        version: What `landlock_version` says.
        readable: Folders and files; a path that does not exist is left out.
        writable: Folders and files.
    """
    handled = max(mask for since, mask in _BY_VERSION.items() if since <= version)
    attributes = struct.pack("QQQ", handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    used = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _call("landlock_create_ruleset", attributes, ctypes.c_size_t(used), 0)
    for paths, allowed in ((readable, _EXECUTE | _READ | _LIST), (writable, handled & ~_EXECUTE)):
        for path in paths:
            try:
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            mine = allowed if os.path.isdir(path) else allowed & (_EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL)
            rule = struct.pack("=Qi", mine & handled, place)
            _call("landlock_add_rule", rules, 1, rule, 0)
            os.close(place)
    _call("landlock_restrict_self", rules, 0)
    os.close(rules)


# System calls: https://docs.kernel.org/userspace-api/seccomp_filter.html

_X86_64 = {
    "ioctl": 16, "shmget": 29, "socket": 41, "socketpair": 53, "clone": 56, "kill": 62, "semget": 64, "msgget": 68,
    "fcntl": 72, "truncate": 76, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "ptrace": 101,
    "rt_sigqueueinfo": 129, "utime": 132, "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144,
    "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199,
    "tkill": 200, "sched_setaffinity": 203, "tgkill": 234, "utimes": 235, "add_key": 248, "request_key": 249,
    "keyctl": 250, "ioprio_set": 251, "fchownat": 260, "futimesat": 261, "fchmodat": 268, "unshare": 272,
    "utimensat": 280, "rt_tgsigqueueinfo": 297, "perf_event_open": 298, "prlimit64": 302, "open_by_handle_at": 304,
    "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "sched_setattr": 314, "memfd_create": 319,
    "bpf": 321, "userfaultfd": 323,
}  # fmt: skip
_AARCH64 = {
    "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16,
    "fcntl": 25, "ioctl": 29, "ioprio_set": 30, "truncate": 45, "fchmod": 52, "fchmodat": 53, "fchownat": 54,
    "fchown": 55, "utimensat": 88, "unshare": 97, "ptrace": 117, "sched_setparam": 118, "sched_setscheduler": 119,
    "sched_setaffinity": 122, "kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "setpriority": 140,
    "msgget": 186, "semget": 190, "shmget": 194, "socket": 198, "socketpair": 199, "add_key": 217, "request_key": 218,
    "keyctl": 219, "clone": 220, "rt_tgsigqueueinfo": 240, "perf_event_open": 241, "prlimit64": 261,
    "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "sched_setattr": 274,
    "memfd_create": 279, "bpf": 280, "userfaultfd": 282,
}  # fmt: skip
_BOTH = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "clone3": 435, "memfd_secret": 447, "fchmodat2": 452,
    "setxattrat": 463, "removexattrat": 466,
}  # fmt: skip
MACHINES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}
"""Machine to its audit number and the numbers of its system calls."""

INTRUSIVE = (
    "ptrace", "process_vm_readv", "process_vm_writev", "unshare", "setns", "io_uring_setup", "bpf", "perf_event_open",
    "userfaultfd", "add_key", "request_key", "keyctl", "open_by_handle_at",
)  # fmt: skip
"""Calls that reach into other processes or the kernel, and io_uring, whose requests no filter sees."""
UNCOUNTED = ("memfd_create", "memfd_secret", "shmget", "semget", "msgget")
"""Memory that belongs to no process, so that no limit counts it, or that outlives the program."""
ATTRIBUTES = (
    "truncate", "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes",
    "futimesat", "utimensat", "setxattr", "lsetxattr", "fsetxattr", "setxattrat", "removexattr", "lremovexattr",
    "fremovexattr", "removexattrat",
)  # fmt: skip
"""Changes of files that Landlock lets through."""
SIGNALS = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal", "fcntl", "ioctl")
"""Ways to end other processes of the same user; of the last two only what names who gets SIGIO."""
SCHEDULING = ("setpriority", "sched_setparam", "sched_setscheduler", "sched_setattr", "sched_setaffinity", "ioprio_set")
"""Ways to slow other processes of the same user down."""
_OWNERS = {"fcntl": (8, 15), "ioctl": (0x8901, 0x8902)}
"""Second arguments of the calls that are refused with these only: F_SETOWN, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP."""

_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_FIRST, _SECOND = 16, 24
"""Where a call's arguments lie in what the filter sees; their lower halves."""


def filter_calls(refused: tuple[str, ...]) -> None:
    """Refuse system calls, for this process and all its descendants. Needs `gain_nothing` before.

    `socket` ends the process with SIGSYS, except for the local kind, which is refused (the C library asks name caches
    that way and goes on without them); pairs of sockets are local streams, which cannot be sent elsewhere as datagrams
    can; limits are the process's own to set; what is in `refused` fails with EPERM; no new namespaces.

    Args:
        refused: Names of calls.
    """
    audit, numbers = MACHINES[platform.machine()]
    numbers = numbers | _BOTH
    program: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL),  # another calling convention
    ]  # fmt: skip
    for name in refused:
        if name in _OWNERS:
            first, second = _OWNERS[name]
            program += [
                (_EQUAL, 0, 5, numbers[name]), (_LOAD, 0, 0, _SECOND),
                (_EQUAL, 1, 0, first), (_EQUAL, 0, 1, second), (_RETURN, 0, 0, _ERRNO | 1), (_RETURN, 0, 0, _ALLOW),
            ]  # fmt: skip
        elif name in numbers:  # newer architectures lack the older calls
            program += [(_EQUAL, 0, 1, numbers[name]), (_RETURN, 0, 0, _ERRNO | 1)]
    program += [
        (_EQUAL, 0, 1, numbers["clone3"]), (_RETURN, 0, 0, _ERRNO | 38),  # its flags are out of sight: ask for clone
        (_EQUAL, 0, 4, numbers["clone"]), (_LOAD, 0, 0, _FIRST),
        (_ANY_BIT, 0, 1, _ANY_NAMESPACE), (_RETURN, 0, 0, _ERRNO | 1), (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, 4, numbers["prlimit64"]), (_LOAD, 0, 0, _FIRST),
        (_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _ERRNO | 1), (_RETURN, 0, 0, _ALLOW),  # 0: itself
        (_EQUAL, 0, 7, numbers["socketpair"]), (_LOAD, 0, 0, _FIRST),
        (_EQUAL, 0, 4, 1), (_LOAD, 0, 0, _SECOND), (_AND, 0, 0, 0xF),  # AF_UNIX; the type without its flags
        (_EQUAL, 0, 1, 1), (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | 13),  # SOCK_STREAM, or EACCES
        (_EQUAL, 0, 4, numbers["socket"]), (_LOAD, 0, 0, _FIRST),
        (_EQUAL, 0, 1, 1), (_RETURN, 0, 0, _ERRNO | 13), (_RETURN, 0, 0, _KILL),  # AF_UNIX: EACCES
        (_RETURN, 0, 0, _ALLOW),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    whole = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    _prctl(22, 2, ctypes.addressof(whole))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
