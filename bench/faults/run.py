#!/usr/bin/env python3
"""The fault suite: real pods that break in every way, behind Sluicegate and, if it is named, Traefik.

    bench/faults/run.py sluicegate=target/release/sluicegate [traefik=PATH] [--rate 150] [--only NAME,...]

For each fault: three pods get GETs at a steady rate whether or not answers come (open loop), one of them (or all)
breaks after 6 s and is mended after 18. Prints a table of Markdown: what clients saw, what pods received for each of
their requests, and how long it took until the broken pod had its share again. Then rolling updates: each pod is
replaced in turn, 20 times in all, gracefully or abruptly, with a list of servers that lags behind; of each POST that
failed it is shown where it was when its pod was killed. Then `reloads`: 1,000 in a row under load. Proxies run with
their defaults. Traffic goes over loopback, and a link to a network namespace that is made for it (as root).
"""

import argparse
import asyncio
import bisect
import ctypes
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
BREAK, MEND, END = 6.0, 18.0, 48.0
# How long clients wait.
PATIENCE = 10.0
# The window of the bar for amplification.
WINDOW = 10.0


class Pod:
    """One pod process."""

    numbers = 0

    async def start(self, directory, port=0, namespace=None):
        Pod.numbers += 1
        self.dir = pathlib.Path(directory)
        self.log = self.dir / f"pod{Pod.numbers}.log"
        self.address, inside = "127.0.0.1", []
        if namespace:
            self.address, inside = namespace.address, ["ip", "netns", "exec", namespace.name]
        self.process = await asyncio.create_subprocess_exec(
            *inside, sys.executable, str(HERE / "pod.py"), str(self.log), self.address, str(port),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)
        self.port = int((await self.process.stdout.readline()).split()[1])
        # Ids of requests that lay unread in its sockets when it was killed.
        self.unread = set()
        return self

    @property
    def url(self):
        return f"http://{self.address}:{self.port}"

    def tell(self, line):
        if self.process.returncode is None:
            self.process.stdin.write(line.encode() + b"\n")

    def signal(self, number):
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def kill_and_look(self):
        """Kills it, and finds out what lay unread in its sockets. The kernel closes those when they are let go of
        here, some milliseconds later, with what had come until then: no different for the other side."""
        pid = self.process.pid
        self.signal(signal.SIGSTOP)
        sockets = borrow_sockets(pid)
        self.signal(signal.SIGKILL)
        await self.process.wait()
        for sock in list(sockets):
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                sockets += accept_all(sock)
        for sock in sockets:
            try:
                data = sock.recv(1 << 16, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except OSError:
                continue
            self.unread.update(re.findall(rb"[?]id=(\d+)", data))
        for sock in sockets:
            sock.close()

    async def stop(self):
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        await self.process.wait()


def borrow_sockets(pid):
    """The TCP sockets of a process, as sockets of this one (pidfd_getfd, Linux 5.6; needs the right to ptrace)."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                continue
        except OSError:
            continue
        fd = libc.syscall(438, pidfd, int(name), 0)
        if fd < 0:
            raise SystemExit(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}; what was in flight cannot be shown")
        sock = socket.socket(fileno=fd)
        if sock.family == socket.AF_INET:
            found.append(sock)
        else:
            sock.close()
    os.close(pidfd)
    return found


def accept_all(listener):
    accepted = []
    listener.setblocking(False)
    while True:
        try:
            accepted.append(listener.accept()[0])
        except OSError:
            return accepted


class Namespace:
    """A network namespace with one link to this one, made and removed here."""

    name, near, far, address = "sluicegate-faults", "sgfaults0", "sgfaults1", "10.203.77.2"

    def __enter__(self):
        self.close()
        for command in (
            f"ip netns add {self.name}", f"ip link add {self.near} type veth peer name {self.far}",
            f"ip link set {self.far} netns {self.name}", f"ip addr add 10.203.77.1/30 dev {self.near}",
            f"ip link set {self.near} up", f"ip -n {self.name} addr add {self.address}/30 dev {self.far}",
            f"ip -n {self.name} link set {self.far} up", f"ip -n {self.name} link set lo up",
        ):
            subprocess.run(command.split(), check=True)
        return self

    def lose(self, share):
        """Of the packets each way, so many vanish."""
        for chain in ("INPUT", "OUTPUT"):
            subprocess.run(["ip", "netns", "exec", self.name, "iptables", "-A", chain, "-m", "statistic", "--mode",
                            "random", "--probability", str(share), "-j", "DROP"], check=True)

    def mend(self):
        subprocess.run(["ip", "netns", "exec", self.name, "iptables", "-F"], check=True)

    def close(self):
        for command in (f"ip link del {self.near}", f"ip netns del {self.name}"):
            subprocess.run(command.split(), stderr=subprocess.DEVNULL)

    def __exit__(self, *_):
        self.close()


class Relay:
    """Stands before a pod and delays what passes."""

    async def start(self, pod):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, str(HERE / "relay.py"), pod.address, str(pod.port),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        self.url = f"http://127.0.0.1:{int((await self.process.stdout.readline()).split()[1])}"
        return self

    def delay(self, millis):
        self.process.stdin.write(f"{millis}\n".encode())

    async def stop(self):
        self.process.kill()
        await self.process.wait()


class Edge:
    """The proxy under test, with its file of servers."""

    def __init__(self, kind, binary, directory):
        self.kind, self.binary, self.dir = kind, binary, pathlib.Path(directory)
        self.static = self.dir / "static.yml"
        self.dynamic = self.dir / "dynamic.yml"

    def write(self, urls, more=""):
        servers = "".join(f"          - url: {url}\n" for url in urls)
        text = ("http:\n  routers:\n    all:\n      rule: PathPrefix(`/`)\n      service: pods\n"
                f"  services:\n    pods:\n      loadBalancer:\n        servers:\n{servers}{more}")
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
            self.admin = free_port()
            with self.static.open("a") as static:
                static.write(f"admin: {{ address: 127.0.0.1:{self.admin} }}\n")
        arguments = ["--config", str(self.static)] if self.kind == "sluicegate" else [f"--configFile={self.static}"]
        log = open(self.dir / "log", "wb")
        self.process = await asyncio.create_subprocess_exec(self.binary, *arguments, stdout=log, stderr=log)
        for _ in range(200):
            status, _ = await ask(self.port)
            if status == 200:
                return self
            await asyncio.sleep(0.05)
        raise SystemExit(f"{self.kind} does not answer: {(self.dir / 'log').read_text()[-2000:]}")

    async def stop(self):
        self.process.kill()
        await self.process.wait()


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


async def ask(port, method="GET", number=0, address="127.0.0.1"):
    """One request on a connection of its own: status (0 for none, -1 for none in time) and seconds."""
    began = time.monotonic()
    writer = None
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(address, port)
            body = "Content-Length: 2\r\n\r\nhi" if method == "POST" else "\r\n"
            writer.write(f"{method} /?id={number} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{body}".encode())
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


async def load(port, rate, seconds, method="GET", address="127.0.0.1"):
    """A steady rate: (when sent, status, seconds, id) of each request."""
    results, tasks, began = [], [], time.monotonic()

    async def one(at, number):
        status, took = await ask(port, method, number, address)
        results.append((at, status, took, number))

    for index in range(int(rate * seconds)):
        at = index / rate
        await asyncio.sleep(max(0, began + at - time.monotonic()))
        # When it is sent, not when it should be: a busy machine may be late.
        tasks.append(asyncio.create_task(one(time.monotonic() - began, index + 1)))
    await asyncio.gather(*tasks)
    return results


def p99(results):
    times = sorted(took for _, _, took, _ in results)
    return times[int(len(times) * 0.99)] * 1000 if times else float("nan")


def read_log(path):
    """Requests that a pod has received, (time, method, id), and the ids that it has answered."""
    received, done = [], set()
    for line in path.read_text().splitlines():
        words = line.split()
        if words[0] == "recv" and len(words) == 4:
            received.append((float(words[3]), words[1], words[2]))
        elif words[0] == "done" and len(words) == 3:
            done.add(words[1])
    return received, done


def amplification(pods, results, began, seconds):
    """The most that pods received for each request that clients sent, over any window."""
    times = sorted(at - began for log in pods for at, _, _ in read_log(log)[0])
    sent = sorted(at for at, _, _, _ in results)
    within = lambda marks, left: bisect.bisect_left(marks, left + WINDOW) - bisect.bisect_left(marks, left)
    windows = [tenth / 10 for tenth in range(int((seconds - WINDOW) * 10) + 1)]
    return max(within(times, left) / max(1, within(sent, left)) for left in windows)


async def break_pod(pod, fault):
    if fault in ("hang", "hang-body", "slow", "reset", "reset-second", "fail"):
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
        await pod.start(pod.dir, pod.port)
    else:
        if fault == "flap":
            await pod.flapping
        pod.tell("mode ok")


async def run_fault(edge, fault, rate, everyone):
    if not fault.startswith("net-"):
        return await run_fault_on(edge, fault, rate, everyone, None)
    with Namespace() as namespace:
        return await run_fault_on(edge, fault, rate, everyone, namespace)


async def run_fault_on(edge, fault, rate, everyone, namespace):
    pods = [await Pod().start(edge.dir, namespace=namespace if place == 1 else None) for place in range(3)]
    urls, relay = [pod.url for pod in pods], None
    if fault == "net-delay":
        relay = await Relay().start(pods[1])
        urls[1] = relay.url
    await edge.start(urls)
    broken = pods if everyone else pods[1:2]
    began = time.monotonic()
    sending = asyncio.create_task(load(edge.port, rate, END))
    await asyncio.sleep(BREAK)
    for pod in broken:
        await break_pod(pod, fault)
    if fault == "net-delay":
        relay.delay(300)
    elif namespace:
        namespace.lose(1 if fault == "net-partition" else 0.3)
    await asyncio.sleep(max(0, began + MEND - time.monotonic()))
    for pod in broken:
        await mend_pod(pod, fault)
    if relay:
        relay.delay(0)
    elif namespace:
        namespace.mend()
    mended = time.monotonic()
    results = await sending
    if relay:
        await relay.stop()
    for pod in pods:
        await pod.stop()
    await edge.stop()
    logs = sorted(edge.dir.glob("pod*.log"))
    # A pod has its share again from the first half second on in which it has 70 % of a third.
    own = [broken[0].log]
    served = [at - mended for log in own for at, _, _ in read_log(log)[0] if at >= mended]
    steps = [sum(1 for at in served if step / 10 <= at < step / 10 + 0.5) for step in range(int((END - MEND) * 10) - 5)]
    back = [step / 10 for step, count in enumerate(steps) if count > rate / 3 * 0.5 * 0.7]
    during = [r for r in results if BREAK <= r[0] < MEND]
    settled = [r for r in during if r[0] >= BREAK + 4]
    return {
        "requests": len(during), "failed": sum(1 for r in during if r[1] != 200),
        "failed later": sum(1 for r in settled if r[1] != 200),
        "failed after mending": sum(1 for r in results if r[0] >= MEND + 3 and r[1] != 200),
        "failed before": sum(1 for r in results if r[0] < BREAK - 0.1 and r[1] != 200),
        "p99 healthy": p99([r for r in results if 1 <= r[0] < BREAK - 0.1]),
        "p99 fault": p99(during), "p99 later": p99(settled),
        "amplification": amplification(logs, results, began, END),
        "recovery": back[0] if back else None,
    }


async def run_rolling(edge, rate, end, lag, method):
    """20 replacements of one pod after the other; a new one is listed before the old one goes. The list is never so
    far behind that no pod on it is left: then nobody could help."""
    pods = [await Pod().start(edge.dir) for _ in range(3)]
    await edge.start([pod.url for pod in pods])
    turn_takes = max(0.75, lag * 0.8)
    seconds = 20 * (turn_takes + 0.1) + 3
    sending = asyncio.create_task(load(edge.port, rate, seconds, method))
    await asyncio.sleep(1)
    ended = []

    async def list_later(urls):
        await asyncio.sleep(lag)
        edge.write(urls)

    for turn in range(20):
        old = pods[turn % 3]
        pods[turn % 3] = await Pod().start(edge.dir)
        listing = asyncio.create_task(list_later([pod.url for pod in pods]))
        if lag == 0:
            await listing
        if end == "graceful":
            old.signal(signal.SIGTERM)
        else:
            await old.kill_and_look()
        ended.append((old, listing))
        await asyncio.sleep(turn_takes)
    results = await sending
    for old, listing in ended:
        await listing
        await old.stop()
    for pod in pods:
        await pod.stop()
    await edge.stop()
    killed = [old for old, _ in ended] if end == "abrupt" else []
    return len(results), where_failed(results, killed, sorted(edge.dir.glob("pod*.log")))


def where_failed(results, killed, logs):
    """How many failed, and of those: being served by a pod that was killed, unread at one, or elsewhere; and how many
    requests came to pods more than once after one had begun to read them."""
    failed = [str(number) for _, status, _, number in results if status != 200]
    served, unread, times = set(), set(), {}
    for pod in killed:
        received, done = read_log(pod.log)
        served |= {number for _, _, number in received} - done
        unread |= {number.decode() for number in pod.unread}
    for log in logs:
        for _, _, number in read_log(log)[0]:
            times[number] = times.get(number, 0) + 1
    return {
        "failed": len(failed),
        "served": sum(1 for number in failed if number in served),
        "unread": sum(1 for number in failed if number not in served and number in unread),
        "elsewhere": sum(1 for number in failed if number not in served and number not in unread),
        # 0 is the question whether the proxy is there.
        "repeated": sum(1 for number, count in times.items() if count > 1 and number != "0"),
    }


async def run_reloads(edge, rate, count):
    """Reloads one after the other under load, each waited for: failures, and memory after each tenth."""
    pods = [await Pod().start(edge.dir) for _ in range(3)]
    await edge.start([pod.url for pod in pods])
    going = True
    results = []

    async def keep_sending():
        began, index, tasks = time.monotonic(), 0, set()

        async def one(number):
            status, took = await ask(edge.port, "GET", number)
            results.append((0, status, took, number))

        while going:
            await asyncio.sleep(max(0, began + index / rate - time.monotonic()))
            index += 1
            tasks.add(task := asyncio.create_task(one(index)))
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    sending = asyncio.create_task(keep_sending())
    began, memory = time.monotonic(), []
    first = await generation(edge.admin)
    for number in range(1, count + 1):
        # A service more or less, and other weights: routers, services and endpoints all change.
        more = ("    more:\n      loadBalancer:\n        servers:\n"
                f"          - url: http://127.0.0.1:{10000 + number}\n") if number % 2 else ""
        edge.write([pod.url for pod in pods][:2 + number % 2], more)
        while await generation(edge.admin) < first + number:
            await asyncio.sleep(0.005)
        if number % (count // 10) == 0:
            memory.append(resident(edge.process.pid))
    seconds = time.monotonic() - began
    going = False
    await sending
    for pod in pods:
        await pod.stop()
    await edge.stop()
    return len(results), sum(1 for r in results if r[1] != 200), memory, seconds


async def generation(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
    page = await reader.read(-1)
    writer.close()
    return int(float(re.search(rb"^sluicegate_config_generation(?:\{[^}]*\})? (\S+)", page, re.M)[1]))


def resident(pid):
    """Memory of a process in MB."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


FAULTS = [
    ("hangs after accept", "hang", False), ("hangs in the body", "hang-body", False),
    ("accept queue full", "full", False), ("answers after 2 s", "slow", False), ("resets", "reset", False),
    ("resets the second request", "reset-second", False),
    ("answers 500", "fail", False), ("500 in bursts", "flap", False), ("refuses", "refuse", False),
    ("crashes", "crash", False), ("all answer 500", "fail", True), ("all reset", "reset", True),
    ("network: cut off", "net-partition", False), ("network: loses 30 % of packets", "net-loss", False),
    ("network: 300 ms more each way", "net-delay", False), ("all reset the second request", "reset-second", True), ("all refuse", "refuse", True), ("all hang", "hang", True),
]


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("proxies", nargs="+", help="kind=path of a binary; the kinds are sluicegate and traefik")
    parser.add_argument("--rate", type=int, default=150)
    parser.add_argument("--only", default="")
    parser.add_argument("--reloads", type=int, default=1000)
    arguments = parser.parse_args()
    edges = [tuple(proxy.split("=", 1)) for proxy in arguments.proxies]
    only = [name for name in arguments.only.split(",") if name]
    wanted = lambda name: not only or any(name.startswith(word) for word in only)
    if any(wanted(name) for name, _, _ in FAULTS):
        print("| fault | proxy | failed of requests | after 4 s | p99 healthy / fault / after 4 s, ms |"
              " received for one sent, any 10 s | recovery, s |")
        print("|---|---|---|---|---|---|---|", flush=True)
    for name, fault, everyone in FAULTS:
        if not wanted(name):
            continue
        if fault.startswith("net-") and os.geteuid() != 0:
            print(f"{name}: skipped, network namespaces need root", file=sys.stderr)
            continue
        for kind, binary in edges:
            with tempfile.TemporaryDirectory() as directory:
                seen = await run_fault(Edge(kind, binary, directory), fault, arguments.rate, everyone)
            recovery = f"more than {END - MEND:.0f}" if seen["recovery"] is None else f"{seen['recovery']:.1f}"
            print(f"| {name} | {kind} | {seen['failed']} of {seen['requests']} | {seen['failed later']} |"
                  f" {seen['p99 healthy']:.0f} / {seen['p99 fault']:.0f} / {seen['p99 later']:.0f} |"
                  f" {seen['amplification']:.2f} | {recovery} |", flush=True)
            for odd in ("failed before", "failed after mending"):
                if seen[odd]:
                    print(f"{name}, {kind}: {odd}: {seen[odd]}", file=sys.stderr, flush=True)
    rolling = [(end, lag, method) for end in ("graceful", "abrupt") for lag in (0, 0.2, 2) for method in ("GET", "POST")]
    rolling = [case for case in rolling if wanted(f"rolling {case[0]}, lag {case[1]} s")]
    if rolling:
        print("\n| rolling update | method | proxy | failed of requests | being served by a killed pod |"
              " unread at a killed pod | elsewhere | read by two pods |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
    for end, lag, method in rolling:
        for kind, binary in edges:
            with tempfile.TemporaryDirectory() as directory:
                sent, seen = await run_rolling(Edge(kind, binary, directory), arguments.rate, end, lag, method)
            print(f"| {end}, lag {lag} s | {method} | {kind} | {seen['failed']} of {sent} | {seen['served']} |"
                  f" {seen['unread']} | {seen['elsewhere']} | {seen['repeated']} |", flush=True)
    if wanted("reloads"):
        print("\n| reloads under load | failed of requests | memory after each tenth, MB | seconds |")
        print("|---|---|---|---|", flush=True)
        for kind, binary in edges:
            # Others have no way to say when they have taken a document up.
            if kind != "sluicegate":
                continue
            with tempfile.TemporaryDirectory() as directory:
                sent, failed, memory, seconds = await run_reloads(
                    Edge(kind, binary, directory), arguments.rate, arguments.reloads)
            print(f"| {arguments.reloads} | {failed} of {sent} | {' '.join(f'{mb:.1f}' for mb in memory)} |"
                  f" {seconds:.0f} |", flush=True)


asyncio.run(main())
