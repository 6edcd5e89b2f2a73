"""A relay that holds every byte back, for kernels without `netem`: relay.py ADDRESS PORT

Prints `listening PORT`. A line on its standard input is the delay from then on, in milliseconds, each way.
"""

import asyncio
import sys

delay = 0.0


async def carry(reader, writer):
    queue: asyncio.Queue = asyncio.Queue(64)
    loop = asyncio.get_running_loop()

    async def read():
        while True:
            try:
                data = await reader.read(1 << 16)
            except ConnectionError:
                data = b""
            await queue.put((loop.time() + delay, data))
            if not data:
                return

    task = asyncio.create_task(read())
    try:
        while True:
            at, data = await queue.get()
            await asyncio.sleep(at - loop.time())
            if not data:
                break
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        task.cancel()
        writer.close()


async def main():
    global delay
    address, port = sys.argv[1], int(sys.argv[2])

    async def serve(reader, writer):
        try:
            pod_reader, pod_writer = await asyncio.open_connection(address, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(carry(reader, pod_writer), carry(pod_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    stdin = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    async for line in stdin:
        delay = float(line) / 1000


asyncio.run(main())
