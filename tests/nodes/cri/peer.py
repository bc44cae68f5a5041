"""The second container of a test pod: counts in the pod's /dev/shm, has System V objects, and tells over TCP.

It runs as `python3 -I -S -c TEXT` in the image `workload`. ADDRESS in its environment is the pod's address. Whoever
connects to port 8000 gets one line of JSON:

counter     goes up all the time
started     which process of the program this is
segment     whether its shared memory (System V) is as it was
semaphore   the value of its semaphore (System V)
unlinked    whether an open file is as it was, of whose two names one is gone
connection  "alive", or the error of a connection between two sockets of the pod's first address
loopback    the same of one over 127.0.0.1
"""

import ctypes
import json
import mmap
import os
import select
import socket

SEGMENT, SIZE, KEY = 0o1600, 65536, 0x9317


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    content = os.urandom(SIZE)
    address = libc.shmat(libc.shmget(KEY, SIZE, SEGMENT), None, 0)
    ctypes.memmove(address, content, SIZE)
    semaphore = libc.semget(KEY, 1, SEGMENT)
    libc.semctl(semaphore, 0, 16, 7)  # SETVAL
    file = os.open("/dev/shm/counter", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(file, mmap.PAGESIZE)
    shared = mmap.mmap(file, mmap.PAGESIZE)
    unlinked = os.open("/tmp/one", os.O_RDWR | os.O_CREAT)
    os.write(unlinked, content)
    os.link("/tmp/one", "/tmp/other")
    os.unlink("/tmp/one")
    pairs = {"connection": pair(os.environ["ADDRESS"]), "loopback": pair("127.0.0.1")}
    server = socket.create_server(("", 8000))
    started = os.urandom(8).hex()
    print(f"ready {started}", flush=True)
    counter = 0
    while True:
        counter += 1
        shared[:8] = counter.to_bytes(8, "little")
        if not select.select([server], [], [], 0.01)[0]:
            continue
        answer = {
            "counter": counter,
            "started": started,
            "segment": ctypes.string_at(address, SIZE) == content,
            "semaphore": libc.semctl(libc.semget(KEY, 1, 0o600), 0, 12),  # GETVAL
            "unlinked": os.pread(unlinked, SIZE, 0) == content
            and os.path.samestat(os.fstat(unlinked), os.stat("/tmp/other")),
            **{name: state(*ends) for name, ends in pairs.items()},
        }
        with server.accept()[0] as caller:
            caller.sendall(json.dumps(answer).encode() + b"\n")
        print(f"told {counter}", flush=True)


def pair(address: str) -> tuple[socket.socket, socket.socket]:
    with socket.create_server((address, 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other = listener.accept()[0]
    for end in (one, other):
        end.settimeout(10)
    return one, other


def state(one: socket.socket, other: socket.socket) -> str:
    try:
        one.sendall(b"x")
        return "alive" if other.recv(1) == b"x" else "closed"
    except OSError as error:
        return type(error).__name__


if __name__ == "__main__":
    main()
