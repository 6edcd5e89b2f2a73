"""One pod of the fault suite: a small HTTP/1.1 server whose behaviour is switched by lines on its standard input.

Prints `listening PORT` once bound. Lines: `mode NAME`, `count` (prints how many requests were read whole), `close`
(stop listening), `open`. SIGTERM ends it as such pods end: no more connections, idle ones closed, the rest finished.
"""

import asyncio
import json
import signal
import socket
import sys

mode = "ok"
gets = posts = 0
idle: set = set()
busy: set = set()
ending = False


async def serve(reader, writer):
    global gets, posts
    if mode == "reset":
        # The request is read, so that the reset is one after it was sent.
        await reader.read(1)
        reset(writer)
        return
    me = asyncio.current_task()
    try:
        while not ending:
            idle.add(writer)
            head = await reader.readuntil(b"\r\n\r\n")
            idle.discard(writer)
            busy.add(me)
            method = head.split(b" ", 1)[0]
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            if length:
                await reader.readexactly(length)
            if method == b"POST":
                posts += 1
            else:
                gets += 1
            if mode == "hang":
                await asyncio.sleep(3600)
            if mode == "slow":
                await asyncio.sleep(2)
            if mode == "reset":
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
            busy.discard(me)
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
    global mode, ending
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0

    async def listen(port):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        return await asyncio.start_server(serve, sock=sock, backlog=64)

    server = await listen(port)
    port = server.sockets[0].getsockname()[1]
    print("listening", port, flush=True)
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    lines: asyncio.Queue = asyncio.Queue()
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)

    async def commands():
        nonlocal server
        global mode
        async for line in stdin:
            words = line.decode().split()
            if words[0] == "mode":
                mode = words[1]
            elif words[0] == "count":
                print(json.dumps({"gets": gets, "posts": posts}), flush=True)
            elif words[0] == "close":
                server.close()
                for writer in list(idle):
                    reset(writer)
            elif words[0] == "open":
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
