#!/usr/bin/env python3
"""The fault suite: real pods that break in every way, behind Sluicegate and, if it is named, Traefik.

    bench/faults/run.py sluicegate=target/release/sluicegate [traefik=PATH] [--rate 150] [--only NAME,...]

For each fault: three pods get GETs at a steady rate whether or not answers come (open loop), one of them (or all)
breaks after 3 s and is mended after 15. Prints a table of Markdown: what clients saw, what pods received for each of
their requests, and how long it took until the broken pod had its share again. Then rolling updates: each pod is
replaced in turn, 20 times in all, gracefully or abruptly, with a list of servers that lags behind.
Traffic goes over loopback only.
"""

import argparse
import asyncio
import json
import os
import pathlib
import signal
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
BREAK, MEND, END = 3.0, 15.0, 30.0
PATIENCE = 10.0


class Pod:
    """One pod process."""

    async def start(self, port=0):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, str(HERE / "pod.py"), str(port),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)
        self.port = int((await self.process.stdout.readline()).split()[1])
        return self

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def tell(self, line):
        self.process.stdin.write(line.encode() + b"\n")

    async def count(self):
        if self.process.returncode is not None:
            return 0
        self.tell("count")
        line = await asyncio.wait_for(self.process.stdout.readline(), 5)
        return sum(json.loads(line).values()) if line else 0

    def signal(self, number):
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def stop(self):
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        await self.process.wait()


class Edge:
    """The proxy under test, with its file of servers."""

    def __init__(self, kind, binary, directory):
        self.kind, self.binary, self.dir = kind, binary, pathlib.Path(directory)
        self.static = self.dir / "static.yml"
        self.dynamic = self.dir / "dynamic.yml"

    def write(self, urls):
        servers = "".join(f"          - url: {url}\n" for url in urls)
        text = ("http:\n  routers:\n    all:\n      rule: PathPrefix(`/`)\n      service: pods\n"
                f"  services:\n    pods:\n      loadBalancer:\n        servers:\n{servers}")
        temporary = self.dynamic.with_suffix(".new")
        temporary.write_text(text)
        os.replace(temporary, self.dynamic)

    async def start(self, urls):
        self.port = free_port()
        self.write(urls)
        self.static.write_text(
            f"entryPoints:\n  web:\n    address: 127.0.0.1:{self.port}\n"
            f"providers:\n  file:\n    filename: {self.dynamic}\n    watch: true\n")
        if self.kind == "sluicegate":
            with self.static.open("a") as static:
                static.write("admin: { address: 127.0.0.1:0 }\n")
        arguments = ["--config", str(self.static)] if self.kind == "sluicegate" else [f"--configFile={self.static}"]
        log = open(self.dir / "log", "wb")
        self.process = await asyncio.create_subprocess_exec(self.binary, *arguments, stdout=log, stderr=log)
        for _ in range(200):
            status, _ = await get(self.port)
            if status == 200:
                return self
            await asyncio.sleep(0.05)
        raise SystemExit(f"{self.kind} does not answer: {(self.dir / 'log').read_text()[-2000:]}")

    async def stop(self):
        self.process.kill()
        await self.process.wait()


def free_port():
    import socket
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


async def get(port, method="GET"):
    """One request on a connection of its own: status (0 for none, -1 for none in time) and seconds."""
    began = time.monotonic()
    writer = None
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            body = "Content-Length: 2\r\n\r\nhi" if method == "POST" else "\r\n"
            writer.write(f"{method} / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{body}".encode())
            answer = await reader.read(-1)
            head, _, content = answer.partition(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.1 ") else 0
            if status == 200 and content != b"ok\n":
                status = 0
    except TimeoutError:
        status = -1
    except (OSError, ValueError, IndexError):
        status = 0
    finally:
        if writer:
            writer.close()
    return status, time.monotonic() - began


async def load(port, rate, seconds, method="GET"):
    """A steady rate: (when sent, status, seconds) of each request."""
    results, tasks, began = [], [], time.monotonic()

    async def one(at):
        status, took = await get(port, method)
        results.append((at, status, took))

    for index in range(int(rate * seconds)):
        at = index / rate
        await asyncio.sleep(max(0, began + at - time.monotonic()))
        tasks.append(asyncio.create_task(one(at)))
    await asyncio.gather(*tasks)
    return results


def p99(results):
    times = sorted(took for _, _, took in results)
    return times[int(len(times) * 0.99)] * 1000 if times else float("nan")


async def break_pod(pod, fault):
    if fault in ("hang", "hang-body", "slow", "reset", "fail"):
        pod.tell(f"mode {fault}")
    elif fault == "refuse":
        pod.tell("close")
    elif fault == "full":
        pod.signal(signal.SIGSTOP)
    elif fault == "crash":
        pod.signal(signal.SIGKILL)
        await pod.process.wait()
    elif fault == "flap":
        async def flap():
            for turn in range(6):
                pod.tell("mode fail" if turn % 2 == 0 else "mode ok")
                await asyncio.sleep(2)
        pod.flapping = asyncio.create_task(flap())


async def mend_pod(pod, fault):
    if fault == "refuse":
        pod.tell("open")
    elif fault == "full":
        pod.signal(signal.SIGCONT)
    elif fault == "crash":
        await pod.start(pod.port)
    else:
        if fault == "flap":
            await pod.flapping
        pod.tell("mode ok")


async def run_fault(edge, fault, rate, everyone):
    pods = [await Pod().start() for _ in range(3)]
    await edge.start([pod.url for pod in pods])
    broken = pods if everyone else pods[1:2]
    sending = asyncio.create_task(load(edge.port, rate, END))
    await asyncio.sleep(BREAK)
    before, counted = sum([await pod.count() for pod in pods]), time.monotonic()
    for pod in broken:
        await break_pod(pod, fault)
    started = time.monotonic()
    counts = []
    while time.monotonic() - started < MEND - BREAK - 0.5:
        await asyncio.sleep(1)
        if fault not in ("full", "crash"):
            counts.append((sum([await pod.count() for pod in pods]), time.monotonic()))
    for pod in broken:
        await mend_pod(pod, fault)
    mended = time.monotonic()
    recovered, last = None, await broken[0].count()
    while time.monotonic() - mended < END - MEND - 1:
        await asyncio.sleep(0.5)
        now = await broken[0].count()
        if recovered is None and now - last > rate / 3 * 0.5 * 0.7:
            recovered = time.monotonic() - mended
        last = now
    results = await sending
    during = [r for r in results if BREAK <= r[0] < MEND]
    settled = [r for r in results if BREAK + 4 <= r[0] < MEND]
    after = [r for r in results if r[0] >= MEND + 3]
    healthy = [r for r in results if r[0] < BREAK]
    bad = [r for r in during if r[1] != 200]
    # Pods' view over ten seconds, first to last count.
    amplification = float("nan")
    if len(counts) >= 10:
        amplification = (counts[9][0] - before) / (rate * (counts[9][1] - counted))
    for pod in pods:
        await pod.stop()
    await edge.stop()
    return {
        "requests": len(during), "failed": len(bad), "unanswered": sum(1 for r in bad if r[1] == -1),
        "p99 healthy": p99(healthy), "p99 fault": p99(during), "p99 after 4 s": p99(settled),
        "failed after 4 s": sum(1 for r in settled if r[1] != 200),
        "failed after mending": sum(1 for r in after if r[1] != 200),
        "amplification": amplification, "recovery": recovered,
    }


async def run_rolling(edge, rate, end, lag, method):
    """20 replacements of one pod after the other; a new one is listed before the old one goes."""
    pods = [await Pod().start() for _ in range(3)]
    await edge.start([pod.url for pod in pods])
    seconds = 20 * 0.75 + 4
    sending = asyncio.create_task(load(edge.port, rate, seconds, method))
    await asyncio.sleep(1)
    ended = []

    async def list_later(urls):
        await asyncio.sleep(lag)
        edge.write(urls)

    for turn in range(20):
        old = pods[turn % 3]
        pods[turn % 3] = await Pod().start()
        listing = asyncio.create_task(list_later([pod.url for pod in pods]))
        if lag == 0:
            await listing
        old.signal(signal.SIGTERM if end == "graceful" else signal.SIGKILL)
        ended.append((old, listing))
        await asyncio.sleep(0.75)
    results = await sending
    for old, listing in ended:
        await listing
        await old.stop()
    for pod in pods:
        await pod.stop()
    await edge.stop()
    return len(results), sum(1 for r in results if r[1] != 200)


FAULTS = [
    ("hangs after accept", "hang", False), ("hangs in the body", "hang-body", False),
    ("accept queue full", "full", False), ("answers after 2 s", "slow", False), ("resets", "reset", False),
    ("answers 500", "fail", False), ("500 in bursts", "flap", False), ("refuses", "refuse", False),
    ("crashes", "crash", False), ("all answer 500", "fail", True), ("all reset", "reset", True),
    ("all refuse", "refuse", True),
]


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("proxies", nargs="+", help="kind=path of a binary; the kinds are sluicegate and traefik")
    parser.add_argument("--rate", type=int, default=150)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    edges = [tuple(proxy.split("=", 1)) for proxy in arguments.proxies]
    only = [name for name in arguments.only.split(",") if name]
    wanted = lambda name: not only or any(word in name for word in only)
    print("| fault | proxy | failed of requests | after 4 s | p99 healthy / fault / after 4 s, ms |"
          " received for one sent | recovery, s |")
    print("|---|---|---|---|---|---|---|")
    for name, fault, everyone in FAULTS:
        if not wanted(name):
            continue
        for kind, binary in edges:
            with tempfile.TemporaryDirectory() as directory:
                seen = await run_fault(Edge(kind, binary, directory), fault, arguments.rate, everyone)
            recovery = "more than 14" if seen["recovery"] is None else f"{seen['recovery']:.1f}"
            print(f"| {name} | {kind} | {seen['failed']} of {seen['requests']} | {seen['failed after 4 s']} |"
                  f" {seen['p99 healthy']:.0f} / {seen['p99 fault']:.0f} / {seen['p99 after 4 s']:.0f} |"
                  f" {seen['amplification']:.2f} | {recovery} |", flush=True)
    print("\n| rolling update | method | " + " | ".join(kind for kind, _ in edges) + " |")
    print("|---|---|" + "---|" * len(edges))
    for end in ("graceful", "abrupt"):
        for lag in (0, 0.2, 2):
            for method in ("GET", "POST"):
                name = f"rolling {end}, lag {lag} s"
                if not wanted(name):
                    continue
                cells = []
                for kind, binary in edges:
                    with tempfile.TemporaryDirectory() as directory:
                        sent, failed = await run_rolling(
                            Edge(kind, binary, directory), arguments.rate, end, lag, method)
                    cells.append(f"{failed} of {sent}")
                print(f"| {name} | {method} | " + " | ".join(cells) + " |", flush=True)


asyncio.run(main())
