"""One pod of the fault suite: a small HTTP/1.1 server whose behaviour is switched by lines on its standard input.

    pod.py LOG [ADDRESS [PORT]]

Prints `listening PORT` once bound. LOG gets a line for each request as soon as its head has been read (`recv METHOD ID
TIME`) and one when its answer has been written (`done ID TIME`); lines are there although the pod is killed in the next
moment. Commands: `mode NAME`, `close` (stop listening, reset connections once idle), `open`. SIGTERM ends it as such pods
end: no more connections, idle ones closed, the rest finished.
"""

import asyncio
import os
import signal
import socket
import sys
import time

mode = "ok"
idle: set = set()
busy: set = set()
ending = False
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def note(*words):
    os.write(log, (" ".join(words) + f" {time.monotonic():.4f}\n").encode())


async def serve(reader, writer):
    if mode == "reset":
        # The request is read, so that the reset is one after it was sent.
        if await reader.read(1):
            note("recv", "ANY", "-")
        reset(writer)
        return
    me = asyncio.current_task()
    answered = 0
    try:
        while not ending:
            idle.add(writer)
            head = await reader.readuntil(b"\r\n\r\n")
            idle.discard(writer)
            busy.add(me)
            method, target, _ = head.decode("latin-1").split(" ", 2)
            number = target.partition("id=")[2] or "-"
            note("recv", method, number)
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            if length:
                await reader.readexactly(length)
            if mode == "hang":
                await asyncio.sleep(3600)
            if mode == "slow":
                await asyncio.sleep(2)
            if mode == "reset" or (mode == "reset-second" and answered):
                reset(writer)
                return
            await asyncio.sleep(0.004)
            status = b"500 Internal Server Error" if mode == "fail" else b"200 OK"
            close = b"Connection: close\r\n" if ending else b""
            if mode == "hang-body":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
                await writer.drain()
                await asyncio.sleep(3600)
            writer.write(b"HTTP/1.1 " + status + b"\r\n" + close + b"Content-Length: 3\r\n\r\nok\n")
            await writer.drain()
            answered += 1
            note("done", number)
            busy.discard(me)
            if mode == "refuse":
                reset(writer)
                return
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        idle.discard(writer)
        busy.discard(me)
        writer.close()


def reset(writer):
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


async def main():
    address = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
    port = int(sys.argv[3]) if len(sys.argv) > 3 else 0

    async def listen(port):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        return await asyncio.start_server(serve, sock=sock, backlog=64)

    global ending
    server = await listen(port)
    port = server.sockets[0].getsockname()[1]
    print("listening", port, flush=True)
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)

    async def commands():
        nonlocal server
        global mode
        async for line in stdin:
            words = line.decode().split()
            if words[0] == "mode":
                mode = words[1]
            elif words[0] == "close":
                mode = "refuse"
                server.close()
                for writer in list(idle):
                    reset(writer)
            elif words[0] == "open":
                mode = "ok"
                server = await listen(port)
        over.set()

    task = asyncio.create_task(commands())
    await over.wait()
    ending = True
    server.close()
    for writer in list(idle):
        writer.close()
    if busy:
        await asyncio.wait(list(busy), timeout=5)
    task.cancel()


try:
    asyncio.run(main())
except KeyboardInterrupt:
    pass
