#!/usr/bin/env python3
"""Proxy benchmark harness: same scenarios for every proxy, runs in alternation,
CPU microseconds per request from /proc, medians of the rounds, JSON out.

  run.py --peer sluicegate=sluicegate:target/release/sluicegate --peer nginx=nginx:nginx \
         --peer haproxy=haproxy:haproxy --scenarios h1,large,hosts

--peer NAME=KIND[+flag]:BINARY   KIND: sluicegate nginx haproxy envoy traefik caddy
--extra 'NAME:COMMAND:PORT'      plain HTTP on PORT, TLS (h1+h2) on PORT+1. The command
                                 is run by the shell with BENCH_PORT BENCH_TLS_PORT
                                 BENCH_UP1 BENCH_UP2 BENCH_CERT BENCH_KEY BENCH_WORKERS
                                 BENCH_VARIANT (base notickets rl_high rl_low rl_exact rl_lease hosts ws grpc)
                                 BENCH_RATE BENCH_DIR set.
--mode one: proxy on one core (1 worker), backend and generator on the other.
--mode all: one worker per core, nothing pinned.
"""
import argparse, contextlib, json, os, re, shlex, shutil, signal, socket, ssl, statistics, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
TCK = os.sysconf("SC_CLK_TCK")
NICE = 0


# ---------------------------------------------------------------- templates
def render(text, ctx):
    """{{var}}, {{#flag}}/{{^flag}}/{{/flag}} and {{#each list}}/{{/each}} on lines of their own."""
    out, lines = [], text.split("\n")

    def walk(i, ctx, emit, end):
        while i < len(lines):
            line = lines[i]
            t = line.strip()
            m = re.fullmatch(r"\{\{([#^/])(each )?(\w+)\}\}", t)
            if not m:
                if emit:
                    out.append(re.sub(r"\{\{(\w+)\}\}", lambda k: str(ctx[k.group(1)]), line))
                i += 1
                continue
            kind, each, name = m.groups()
            if kind == "/":
                assert name == end, (name, end, i)
                return i + 1
            if each:
                items = ctx.get(name, [])
                nxt = i + 1
                if not emit or not items:
                    nxt = walk(i + 1, ctx, False, "each")
                else:
                    for it in items:
                        nxt = walk(i + 1, {**ctx, **it}, True, "each")
                i = nxt
            else:
                on = bool(ctx.get(name)) == (kind == "#")
                i = walk(i + 1, ctx, emit and on, name)
        return i

    walk(0, ctx, True, None)
    return "\n".join(out)


# ---------------------------------------------------------------- /proc
def tree(root):
    kids = {}
    for p in os.listdir("/proc"):
        if p.isdigit():
            try:
                with open(f"/proc/{p}/stat") as f:
                    s = f.read()
                kids.setdefault(int(s[s.rindex(")") + 2:].split()[1]), []).append(int(p))
            except OSError:
                pass
    todo, seen = [root], []
    while todo:
        p = todo.pop()
        seen.append(p)
        todo += kids.get(p, [])
    return seen


def cpu_us(pids):
    t = 0
    for p in pids:
        try:
            with open(f"/proc/{p}/stat") as f:
                s = f.read()
            f = s[s.rindex(")") + 2:].split()
            t += int(f[11]) + int(f[12])
        except OSError:
            pass
    return t * 1_000_000 / TCK


def mem_kb(pids):
    rss = pss = 0
    for p in pids:
        try:
            with open(f"/proc/{p}/smaps_rollup") as f:
                for l in f:
                    if l.startswith("Rss:"):
                        rss += int(l.split()[1])
                    elif l.startswith("Pss:"):
                        pss += int(l.split()[1])
        except OSError:
            pass
    return rss, pss


# ---------------------------------------------------------------- processes
def http2_words(binary):
    """How this nginx is told to speak HTTP/2."""
    v = subprocess.run([binary, "-v"], capture_output=True, text=True).stderr
    new = tuple(map(int, re.search(r"nginx/(\d+)\.(\d+)", v).groups())) >= (1, 26)
    return {"HTTP2_ON_LISTEN": "" if new else " http2", "HTTP2_DIRECTIVE": "http2 on;" if new else ""}


class Proc:
    def __init__(self, name, argv, env=None, cpu=None, shell=False, log=None):
        if shell:
            argv = ["/bin/sh", "-c", "exec " + argv]
        if NICE:
            argv = ["nice", "-n", str(NICE)] + argv
        if cpu is not None:
            argv = ["taskset", "-c", str(cpu)] + argv
        self.name, self.argv = name, argv
        self.log = open(log, "ab") if log else subprocess.DEVNULL
        self.p = subprocess.Popen(argv, env=env, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL, start_new_session=True)

    @property
    def pids(self):
        return tree(self.p.pid)

    def stop(self):
        pids = self.pids
        if self.p.poll() is None:
            self.p.terminate()
            try:
                self.p.wait(3)
            except subprocess.TimeoutExpired:
                pass
        for p in pids:  # only processes of the tree started here
            with contextlib.suppress(OSError):
                os.kill(p, signal.SIGKILL)
        with contextlib.suppress(Exception):
            self.p.wait(2)


def fetch(port, tls=False, host="h007.example.test", path="/", timeout=3):
    s = socket.create_connection(("127.0.0.1", port), timeout)
    if tls:
        c = ssl.create_default_context()
        c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
        s = c.wrap_socket(s, server_hostname="bench.example.test")
    s.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    b = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while True:
            d = s.recv(65536)
            if not d:
                break
            b += d
    s.close()
    return b


def wait_up(proc, port, tls_port, hosts, deadline=25, http2=False):
    end = time.time() + deadline
    last = None
    while time.time() < end:
        if proc.p.poll() is not None:
            raise RuntimeError(f"{proc.name} exited with {proc.p.returncode}: {shlex.join(proc.argv)}")
        try:
            if http2:  # it may not speak HTTP/1.1 there; the warm-up tells the rest
                socket.create_connection(("127.0.0.1", port), 3).close()
                return
            b = fetch(port)
            if b.startswith(b"HTTP/1.1 200") or b.startswith(b"HTTP/1.1 429"):
                return
            last = b[:80]
        except OSError as e:
            last = e
        time.sleep(0.1)
    raise RuntimeError(f"{proc.name} not ready on {port}: {last}")


# ---------------------------------------------------------------- proxies
class Bench:
    def __init__(self, a):
        self.a = a
        self.dir = a.dir
        os.makedirs(self.dir, exist_ok=True)
        os.chmod(self.dir, 0o755)
        self.workers = a.workers or (1 if a.mode == "one" else os.cpu_count())
        self.proxy_cpu = "0" if a.mode == "one" else None
        self.gen_cpu = "1" if a.mode == "one" else None
        self.up = [f"127.0.0.1:{a.backend_port}", f"127.0.0.1:{a.backend_port + 1}"]
        self.running = {}
        self.cert, self.key, self.pem = (os.path.join(self.dir, n) for n in ("cert.pem", "key.pem", "both.pem"))
        if not os.path.exists(self.pem):
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
                            "-subj", "/CN=bench.example.test", "-addext", "subjectAltName=DNS:bench.example.test,DNS:localhost,IP:127.0.0.1", "-keyout", self.key, "-out", self.cert], check=True, capture_output=True)
            with open(self.pem, "w") as f:
                f.write(open(self.cert).read() + open(self.key).read())
            os.chmod(self.key, 0o644), os.chmod(self.pem, 0o644)
        with open(os.path.join(self.dir, "call.bin"), "wb") as f:  # one gRPC message: not compressed, 64 bytes
            f.write(b"\0" + (64).to_bytes(4, "big") + b"x" * 64)
        big = os.path.join(self.dir, "1m.bin")
        if not os.path.exists(big):
            with open(big, "wb") as f:
                f.write(os.urandom(1 << 20))
        ports = {f"GRPC{i}": f"127.0.0.1:{a.backend_port + 1 + i}" for i in (1, 2)}
        conf = self.write("backend.nginx.conf", "backend.conf", {"WORKERS": 1 if a.mode == "one" else os.cpu_count(), **ports, **http2_words(a.backend)})
        self.backend = Proc("backend", [a.backend, "-e", os.path.join(self.dir, "backend.err"), "-c", conf], cpu=self.gen_cpu, log=os.path.join(self.dir, "backend.log"))
        wait_up(self.backend, a.backend_port, None, False)
        self.echo = self.redis = None

    def shared_store(self, variant):
        """The address of the Redis that a variant's limits are in, which is started here; none for others."""
        if variant not in REDIS:
            return {}
        port = self.a.backend_port + 6
        if self.redis is None:
            argv = [self.a.redis, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
            self.redis = Proc("redis", argv, cpu=self.gen_cpu, log=os.path.join(self.dir, "redis.log"))
            end = time.time() + 10
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 3).close()
                    break
                except OSError:
                    if time.time() > end:
                        raise
                    time.sleep(0.1)
        return {"redis": True, "REDIS": f"127.0.0.1:{port}"}

    def upstreams(self, variant):
        """Where a variant's requests go: the backend, its HTTP/2 side, or the pod of WebSockets, which is started here."""
        base = self.a.backend_port
        if variant == "grpc":
            return [f"127.0.0.1:{base + 2}", f"127.0.0.1:{base + 3}"]
        if variant != "ws":
            return self.up
        up = [f"127.0.0.1:{base + 4}", f"127.0.0.1:{base + 5}"]
        if self.echo is None:
            self.echo = Proc("messages", [self.a.messages, "serve", *up], cpu=self.gen_cpu, log=os.path.join(self.dir, "messages.log"))
            wait_up(self.echo, base + 4, None, False)
        return up

    def write(self, src, dst, ctx):
        base = {"DIR": self.dir, "UP1": self.up[0], "UP2": self.up[1], "CERT": self.cert, "KEY": self.key, "PEM": self.pem, "WORKERS": self.workers}
        path = os.path.join(self.dir, dst)
        with open(os.path.join(HERE, "configs", src)) as f:
            text = render(f.read(), {**base, **ctx})
        with open(path, "w") as f:
            f.write(text)
        return path

    def start(self, peer, variant):
        name, kind, flags, binary, port = peer["name"], peer["kind"], peer["flags"], peer["bin"], peer["port"]
        up = self.upstreams(variant)
        ctx = {"NAME": name, "PORT": port, "TLS_PORT": port + 1, variant: True, "UP1": up[0], "UP2": up[1], "RATE": 100 if variant == "rl_low" else 100_000_000,
               **{f: True for f in flags}, **self.shared_store(variant)}
        if variant == "hosts":
            ctx["hosts"] = [{"host": f"h{i:03d}.example.test"} for i in range(1000)]
        argv, shell, env = None, False, dict(os.environ)
        if kind == "nginx":
            ctx.update(http2_words(binary))
            argv = [binary, "-e", os.path.join(self.dir, f"proxy-{name}.err"), "-c", self.write("nginx.conf", f"{name}.conf", ctx)]
        elif kind == "sluicegate":
            argv = [binary, "--config", self.write("sluicegate.yaml", f"{name}.yaml", ctx)]
        elif kind == "haproxy":
            ctx["TICKETS"] = " no-tls-tickets" if variant == "notickets" else ""
            self.write("haproxy.map", f"haproxy-{name}.map", ctx)
            argv = [binary, "-db", "-f", self.write("haproxy.cfg", f"{name}.cfg", ctx)]
        elif kind == "traefik":
            self.write("traefik.dyn.yml", f"traefik-{name}.dyn.yml", ctx)
            argv = [binary, "--configFile=" + self.write("traefik.yml", f"{name}.yml", ctx)]
            env["GOMAXPROCS"] = str(self.workers)
        elif kind == "caddy":
            argv = [binary, "run", "--config", self.write("caddy.json", f"{name}.json", ctx)]
            env.update(GOMAXPROCS=str(self.workers), HOME=self.dir, XDG_DATA_HOME=self.dir, XDG_CONFIG_HOME=self.dir)
        elif kind == "envoy":
            dis = ", disable_stateless_session_resumption: true, disable_stateful_session_resumption: true" if variant == "notickets" else ""
            tls = ("    transport_socket:\n      name: envoy.transport_sockets.tls\n      typed_config:\n        \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n"
                   "        common_tls_context: { alpn_protocols: [h2, http/1.1], tls_certificates: [ { certificate_chain: { filename: \"%s\" }, private_key: { filename: \"%s\" } } ] }\n" % (self.cert, self.key))
            if dis:
                tls += "        disable_stateless_session_resumption: true\n        disable_stateful_session_resumption: true\n"
            tls = "\n".join("  " + l if l else l for l in tls.split("\n"))
            ctx["listeners"] = [{"port": port, "tls": ""}, {"port": port + 1, "tls": tls}]
            ctx["rl"] = variant.startswith("rl_")
            for i in (0, 1):
                h, p = up[i].split(":")
                ctx[f"UP{i+1}_HOST"], ctx[f"UP{i+1}_PORT"] = h, p
            argv = [binary, "-c", self.write("envoy.yaml", f"{name}.yaml", ctx), "--concurrency", str(self.workers), "--disable-hot-restart", "-l", "error"]
        else:
            shell, argv = True, binary
        env.update(BENCH_PORT=str(port), BENCH_TLS_PORT=str(port + 1), BENCH_UP1=up[0], BENCH_UP2=up[1], BENCH_CERT=self.cert, BENCH_KEY=self.key,
                   BENCH_WORKERS=str(self.workers), BENCH_VARIANT=variant, BENCH_RATE=str(ctx["RATE"]), BENCH_DIR=self.dir)
        p = Proc(name, argv, env=env, cpu=self.proxy_cpu, shell=shell, log=os.path.join(self.dir, f"{name}.log"))
        try:
            wait_up(p, port, port + 1, variant == "hosts", http2=variant == "grpc")
        except Exception:
            p.stop()
            raise
        self.running[name] = p
        return p

    def stop_all(self):
        for p in list(self.running.values()):
            p.stop()
        self.running.clear()

    # ------------------------------------------------------------ generators
    def gen(self, sc, port, secs):
        a, pin = self.a, (["taskset", "-c", self.gen_cpu] if self.gen_cpu else []) + (["nice", "-n", str(NICE)] if NICE else [])
        thr = "1" if a.mode == "one" else str(os.cpu_count())
        rep = os.path.join(HERE, "report.lua")
        u, t = f"http://127.0.0.1:{port}", f"https://127.0.0.1:{port + 1}"
        wrk = lambda c, url, *x, lua=rep: pin + ["wrk", f"-t{thr}", f"-c{c}", f"-d{secs}s", "--timeout", "10s", *x, "-s", lua, url]
        if sc in ("h1", "rl_high", "rl_low", "links", *REDIS):
            return wrk(64, u + "/")
        if sc == "h1c8":
            return wrk(8, u + "/")
        if sc == "h1c512":
            return wrk(512, u + "/")
        if sc == "large":
            return wrk(16, u + "/1m.bin")
        if sc == "tls1":
            return wrk(64, t + "/")
        if sc == "tlslarge":
            return wrk(16, t + "/1m.bin")
        if sc == "hs":
            return wrk(16, t + "/", "-H", "Connection: close")
        if sc == "hosts":
            return wrk(64, u + "/", lua=os.path.join(HERE, "hosts.lua"))
        if sc == "h2":
            return pin + ["h2load", f"-t{thr}", "-c8", "-m32", f"-D{secs}", "--warm-up-time=0", f"--log-file={os.path.join(self.dir, 'h2.log')}", t + "/"]
        if sc == "grpc":
            return pin + ["h2load", f"-t{thr}", "-c8", "-m16", f"-D{secs}", "--warm-up-time=0", "-H", "content-type: application/grpc", "-H", "te: trailers",
                          "-d", os.path.join(self.dir, "call.bin"), f"--log-file={os.path.join(self.dir, 'h2.log')}", u + "/bench.Echo/Unary"]
        if sc == "ws":
            return pin + [a.messages, "send", f"127.0.0.1:{port}", "--conns", "64", "--secs", str(secs)]
        if sc == "open":
            return pin + [a.openloop, f"127.0.0.1:{port}", "--rate", str(a.rate), "--conns", "64", "--secs", str(secs)]
        raise SystemExit(f"unknown scenario {sc}")

    def one(self, sc, name, port, secs):
        if sc.startswith("idle"):
            return self.idle(sc, name, port)
        argv = self.gen(sc, port, secs)
        pids, bp = self.running[name].pids, (self.echo if sc == "ws" else self.backend).pids
        rp = self.redis.pids if sc in REDIS else []
        log = os.path.join(self.dir, "h2.log")
        if sc in ("h2", "grpc") and os.path.exists(log):
            os.unlink(log)
        c0, b0, r0, t0 = cpu_us(pids), cpu_us(bp), cpu_us(rp), time.time()
        r = subprocess.run(argv, capture_output=True, text=True, timeout=secs + 60)
        wall = time.time() - t0
        c1, b1, r1 = cpu_us(pids), cpu_us(bp), cpu_us(rp)
        rss, pss = mem_kb(pids)
        o = {"name": name, "scenario": sc, "wall": wall, "proxy_cpu_us": c1 - c0, "cpu_util": (c1 - c0) / wall / 1e6, "rss_kb": rss, "pss_kb": pss, "cmd": shlex.join(argv)}
        if sc in ("h2", "grpc"):
            m = re.search(r"finished in ([\d.]+)(s|ms|us), ([\d.]+) req/s", r.stdout)
            k = re.search(r"requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", r.stdout)
            if not m or not k:
                raise RuntimeError(f"h2load said:\n{r.stdout[-600:]}{r.stderr[-300:]}")
            lat = []
            if os.path.exists(log):
                with open(log) as f:
                    lat = sorted(int(l.rsplit("\t", 1)[1]) for l in f)
            # in timing mode h2load counts requests it had in flight when it stopped as failed
            codes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", r.stdout)
            n = int(codes.group(1))
            o.update(requests=n, rps=n / secs, errors=sum(int(codes.group(i)) for i in (2, 3, 4)) + int(k.group(6)), p50=lat[len(lat) // 2] if lat else None, p99=lat[int(len(lat) * .99)] if lat else None,
                     p999=lat[int(len(lat) * .999)] if lat else None)
        elif sc in ("open", "ws"):
            if r.returncode != 0:
                raise RuntimeError(f"the generator said:\n{r.stderr[-600:]}")
            j = json.loads(r.stdout)
            n = j["requests"] + j["errors"]
            o.update(requests=n, rps=j["rps"], errors=j["errors"], p50=j["p50"], p99=j["p99"], p999=j["p999"])
        else:
            m = re.search(r"^JSON (\{.*\})$", r.stdout, re.M)
            if not m:
                raise RuntimeError(f"wrk said:\n{r.stdout[-600:]}{r.stderr[-600:]}")
            j = json.loads(m.group(1))
            n = j["requests"]
            o.update(requests=n, rps=n / (j["us"] / 1e6), mbps=j["bytes"] / j["us"], errors=j["non2xx"] + j["connect_err"] + j["read_err"] + j["write_err"] + j["timeouts"],
                     non2xx=j["non2xx"], p50=j["p50"], p99=j["p99"], p999=j["p999"])
        n = max(1, o["requests"])
        o.update(cpu_us_req=(c1 - c0) / n, backend_us_req=(b1 - b0) / n, redis_us_req=(r1 - r0) / n)
        return o

    def idle(self, sc, name, port):
        """Open idle keep-alive connections (one request each) and read the proxy's memory."""
        tls, count = sc == "idletls", self.a.idle
        pids = self.running[name].pids
        for _ in range(200):
            fetch(port)
        time.sleep(0.5)
        r0, p0 = mem_kb(pids)
        ctx = ssl.create_default_context()
        ctx.check_hostname, ctx.verify_mode = False, ssl.CERT_NONE
        req, socks, ok = b"GET / HTTP/1.1\r\nHost: h007.example.test\r\nUser-Agent: idle\r\n\r\n", [], 0
        c0, t0 = cpu_us(pids), time.time()
        for i in range(count):
            s = socket.create_connection(("127.0.0.1", port + (1 if tls else 0)), 5)
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else the request waits for a delayed ACK
            if tls:
                s = ctx.wrap_socket(s, server_hostname="bench.example.test")
            s.sendall(req)
            ok += s.recv(4096).startswith(b"HTTP/1.1 200")
            socks.append(s)
        c1, wall = cpu_us(pids), time.time() - t0
        time.sleep(3)
        r1, p1 = mem_kb(pids)
        c2 = cpu_us(pids)
        time.sleep(2)
        c3 = cpu_us(pids)
        alive = 0
        for s in socks[:: max(1, count // 200)]:
            try:
                s.sendall(req)
                alive += s.recv(4096).startswith(b"HTTP/1.1 200")
            except OSError:
                pass
        for s in socks:
            s.close()
        time.sleep(0.5)
        return {"name": name, "scenario": sc, "wall": wall, "requests": ok, "rps": ok / wall, "errors": count - ok, "rss_kb": r1, "pss_kb": p1, "idle_rss_before_kb": r0, "idle_bytes_per_conn": (r1 - r0) * 1024 / count,
                "idle_cpu_ms_per_s": (c3 - c2) / 2000, "alive_sample": alive, "cpu_us_req": (c1 - c0) / count, "backend_us_req": 0, "cpu_util": (c1 - c0) / wall / 1e6, "p50": None, "p99": None, "p999": None, "cmd": f"{count} connections"}


VARIANT = {"ws": "ws", "grpc": "grpc", "hs": "notickets", "links": "links", "rl_high": "rl_high", "rl_low": "rl_low", "rl_exact": "rl_exact", "rl_lease": "rl_lease", "hosts": "hosts"}
# Variants whose limit is in Redis, and who can have it there.
REDIS = {"rl_exact": ("sluicegate", "traefik"), "rl_lease": ("sluicegate",)}
med = lambda v: statistics.median(v) if v else None


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--peer", action="append", default=[])
    ap.add_argument("--extra", action="append", default=[])
    ap.add_argument("--scenarios", default="h1,large,rl_low,rl_high,rl_exact,rl_lease,hosts,open,idle,tls1,h2,hs,tlslarge,idletls,ws,grpc")
    ap.add_argument("--mode", choices=["one", "all"], default="one")
    ap.add_argument("--workers", type=int)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--secs", type=int, default=5)
    ap.add_argument("--rate", type=int, default=2000, help="requests per second of the scenario open")
    ap.add_argument("--idle", type=int, default=9500)
    ap.add_argument("--nice", type=int, default=0, help="niceness of proxy, backend and generator (below 0 needs root)")
    ap.add_argument("--backend", default="nginx")
    ap.add_argument("--backend-port", type=int, default=19001)
    ap.add_argument("--redis", default="redis-server")
    ap.add_argument("--openloop", default=os.path.join(HERE, "out", "openloop"))
    ap.add_argument("--messages", default=os.path.join(HERE, "out", "messages"))
    ap.add_argument("--dir", default=os.environ.get("BENCH_DIR") or os.path.join(tempfile.gettempdir(), "proxy-bench"))
    ap.add_argument("--out", default="results.json")
    a = ap.parse_args()
    global NICE
    NICE = a.nice
    import resource
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for n in (65536, hard):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (n, max(n, hard)))
            break
    peers, port = [], 18100
    for p in a.peer:
        name, rest = p.split("=", 1)
        kind, binary = rest.split(":", 1)
        kind, *flags = kind.split("+")
        if kind != "cmd" and not shutil.which(binary):
            print(f"-- {name}: {binary} not found, left out", file=sys.stderr)
            continue
        peers.append({"name": name, "kind": kind, "flags": flags, "bin": binary, "port": port})
        port += 2
    for e in a.extra:
        name, rest = e.split(":", 1)
        cmd, pt = rest.rsplit(":", 1)
        peers.append({"name": name, "kind": "cmd", "flags": [], "bin": cmd, "port": int(pt)})
    rows = []
    b = Bench(a)
    try:
        for sc in a.scenarios.split(","):
            variant = VARIANT.get(sc, "base")
            needs = {"ws": a.messages, "grpc": "h2load", "h2": "h2load", **dict.fromkeys(REDIS, a.redis)}.get(sc)
            if needs and not shutil.which(needs):
                print(f"-- {sc}: {needs} not found, left out", file=sys.stderr)
                continue
            live = []
            for p in peers:
                if variant == "links" and p["kind"] != "sluicegate":
                    continue  # five edit links: a figure of ours alone
                if variant in ("rl_high", "rl_low") and p["kind"] == "caddy":
                    continue  # no rate limiter in the standard build
                if p["kind"] not in REDIS.get(variant, (p["kind"],)):
                    continue
                if variant == "grpc" and p["kind"] == "caddy":
                    continue  # not configured for h2c here
                if sc.startswith("idle"):
                    live.append(p)
                    continue
                try:
                    b.start(p, variant)
                    live.append(p)
                except Exception as e:
                    print(f"-- {p['name']}: {e}", file=sys.stderr)
            if not sc.startswith("idle"):
                for p in live:  # warm-up
                    with contextlib.suppress(Exception):
                        b.one(sc, p["name"], p["port"], 1)
            for rnd in range(1 if sc.startswith("idle") else a.rounds):
                for p in live:
                    try:
                        if sc.startswith("idle"):
                            b.start(p, variant)
                        r = b.one(sc, p["name"], p["port"], a.secs)
                    except Exception as e:
                        print(f"-- {p['name']} {sc}: {type(e).__name__}: {e}", file=sys.stderr)
                        continue
                    finally:
                        if sc.startswith("idle"):
                            b.stop_all()
                    r.update(round=rnd, mode=a.mode, variant=variant)
                    rows.append(r)
                    time.sleep(0.2)
            b.stop_all()
            table(sc, a, [r for r in rows if r["scenario"] == sc], [p["name"] for p in live])
            with open(a.out, "w") as f:
                json.dump({"mode": a.mode, "workers": b.workers, "secs": a.secs, "rows": rows}, f, indent=0)
    finally:
        b.stop_all()
        b.backend.stop()
        for p in filter(None, (b.echo, b.redis)):
            p.stop()


def table(sc, a, rows, names):
    cmd = rows[0]["cmd"] if rows else ""
    print(f"\n### {sc} (mode {a.mode}, {a.rounds} rounds x {a.secs} s)  `{re.sub(r'/[^ ]*/', '', cmd)}`")
    if sc.startswith("idle"):
        print("| proxy | RSS before KiB | RSS after KiB | bytes/conn | idle CPU ms/s | opened | still alive of 200 |\n|---|---|---|---|---|---|---|")
        for r in rows:
            print(f"| {r['name']} | {r['idle_rss_before_kb']} | {r['rss_kb']} | {r['idle_bytes_per_conn']:.0f} | {r['idle_cpu_ms_per_s']:.1f} | {r['requests']} | {r['alive_sample']} |")
        sys.stdout.flush()
        return
    print("| proxy | req/s | CPU us/req (min-max) | p50 us | p99 us | p99.9 us | proxy cores used | backend+redis us/req | RSS MiB | non-2xx+errors |\n|---|---|---|---|---|---|---|---|---|---|")
    for n in names:
        v = [r for r in rows if r["name"] == n]
        if not v:
            continue
        g = lambda k: med([r[k] for r in v if r.get(k) is not None])
        c = [r["cpu_us_req"] for r in v]
        i = lambda x: "-" if x is None else f"{x:.0f}"
        print(f"| {n} | {g('rps'):.0f} | {med(c):.2f} ({min(c):.2f}-{max(c):.2f}) | {i(g('p50'))} | {i(g('p99'))} | {i(g('p999'))} | {g('cpu_util'):.2f} | {g('backend_us_req') + (g('redis_us_req') or 0):.2f} | {g('rss_kb')/1024:.0f} | {sum(r['errors'] for r in v)} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
