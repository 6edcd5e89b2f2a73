//! The command line: what each subcommand prints and how it exits.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{eventually, origin, proxy, run, scratch};

const GOOD: &str = r#"
entryPoints: { web: { address: "127.0.0.1:0" } }
http:
  routers:
    api: { rule: "Host(`a.test`) && PathPrefix(`/api`)", service: pods, middlewares: [strip] }
    any: { rule: "PathPrefix(`/`) && Method(`GET`)", service: pods }
  middlewares: { strip: { stripPrefix: { prefixes: ["/api/"] } } }
  services: { pods: { loadBalancer: { servers: [{ url: "http://127.0.0.1:9" }] } } }
"#;

const BAD: &str = r#"entryPoints: { web: { address: "127.0.0.1:0" } }
http:
  routers:
    api:
      rule: Hots(`a.test`)
      service: pods
    other:
      rule: Host(`b.test`)
      service: nobody
    third: { rule: Host(`c.test`), servcie: pods }
  services:
    pods:
      loadBalancer:
        servers: [{ url: "not a url" }]
"#;

fn with(text: &str) -> (TempDir, String) {
    let dir = scratch();
    fs::write(dir.path().join("sluicegate.yaml"), text).expect("a writable directory");
    (dir, "sluicegate.yaml".to_owned())
}

#[test]
fn a_good_file_passes_check() {
    let (dir, file) = with(GOOD);

    run(dir.path(), ["check", &file]).expect(0);
}

#[test]
fn check_shows_every_problem_at_its_place_with_a_hint() {
    let (dir, file) = with(BAD);

    let report = run(dir.path(), ["check", &file]).expect(1).stdout;

    for place in ["sluicegate.yaml:5:", "sluicegate.yaml:9:", "sluicegate.yaml:10:", "sluicegate.yaml:14:"] {
        assert!(report.contains(place), "no {place} in\n{report}");
    }
    for word in ["Hots", "servcie", "service", "nobody", "did you mean"] {
        assert!(report.contains(word), "no {word} in\n{report}");
    }
}

#[test]
fn check_shows_the_offending_line() {
    let (dir, file) = with(BAD);

    let report = run(dir.path(), ["check", &file]).expect(1).stdout;

    assert!(report.contains("rule: Hots(`a.test`)"), "{report}");
}

#[test]
fn check_in_json_is_for_machines() {
    let (dir, file) = with(BAD);

    let finished = run(dir.path(), ["check", "--format", "json", &file]).expect(1);

    let report: Value =
        serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.stdout));
    let problems = report.as_array().or_else(|| report["problems"].as_array()).expect("a list of problems");
    assert!(problems.len() >= 4, "{report}");
    for problem in problems {
        assert!(problem["message"].is_string(), "{problem}");
        assert!(problem["path"].is_string(), "{problem}");
        let place = problem.get("place").filter(|place| place.is_object()).unwrap_or(problem);
        assert!(place["line"].as_u64().is_some_and(|line| line > 0), "{problem}");
        assert!(place["column"].as_u64().is_some_and(|column| column > 0), "{problem}");
    }
}

#[test]
fn check_takes_several_files_and_names_the_bad_one() {
    let dir = scratch();
    fs::write(dir.path().join("good.yaml"), GOOD).expect("a writable directory");
    fs::write(dir.path().join("bad.yaml"), BAD).expect("a writable directory");

    let report = run(dir.path(), ["check", "good.yaml", "bad.yaml"]).expect(1).stdout;

    assert!(report.contains("bad.yaml:5:"), "{report}");
}

#[test]
fn check_survives_whatever_a_file_may_hold() {
    let deep = "[".repeat(10_000);
    let bomb = "a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n";
    for (name, bytes) in [
        ("nothing", &b""[..]),
        ("a comment", b"# only this\n"),
        ("null", b"null\n"),
        ("NUL", b"\0\0\0"),
        ("no UTF-8", b"http: \xff\xff"),
        ("a tab", b"http:\n\trouters: {}\n"),
        ("half a string", b"http: \"unfinished"),
        ("depth", deep.as_bytes()),
        ("an alias bomb", bomb.as_bytes()),
        ("a duplicate key", b"http:\n  services: {}\n  services: {}\n"),
        ("two documents", b"http: {}\n---\nhttp: {}\n"),
        ("an alias to nowhere", b"http: *nobody\n"),
        ("a scalar for a map", b"http: 7\n"),
        ("a list for a map", b"http: [1, 2]\n"),
        ("a map for a scalar", b"http: { routers: { a: { rule: {}, service: s } } }\n"),
        (
            "a huge number",
            b"http: { middlewares: { m: { rateLimit: { average: 99999999999999999999999 } } } }\n",
        ),
    ] {
        let dir = scratch();
        fs::write(dir.path().join("x.yaml"), bytes).expect("a writable directory");

        let finished = run(dir.path(), ["check", "x.yaml"]);

        assert_eq!(finished.code, Some(1), "{name}: {}{}", finished.stdout, finished.stderr);
        assert!(finished.stdout.contains("x.yaml"), "{name}: {}{}", finished.stdout, finished.stderr);
        assert!(!finished.stderr.contains("panicked"), "{name}: {}", finished.stderr);
    }
}

#[test]
fn check_of_a_missing_file_says_so() {
    let dir = scratch();

    let finished = run(dir.path(), ["check", "nowhere.yaml"]);

    assert_eq!(finished.code, Some(1));
    assert!((finished.stdout + &finished.stderr).contains("nowhere.yaml"));
}

#[test]
fn what_is_not_built_yet_is_refused_by_name() {
    let (dir, file) = with(
        "entryPoints: { web: { address: ':80' } }\nhttp:\n  middlewares:\n    z: { compress: {} }\n    f: { forwardAuth: { address: 'http://x' } }\n",
    );

    let report = run(dir.path(), ["check", &file]).expect(1).stdout;

    assert!(report.contains("compress") && report.contains("forwardAuth"), "{report}");
    assert!(report.contains("not supported"), "{report}");
}

#[test]
fn a_traefik_dynamic_file_passes_unchanged() {
    let (dir, file) = with(
        r#"
entryPoints: { web: { address: ":80" } }
http:
  routers:
    Router0:
      entryPoints:
        - web
      middlewares:
        - add-foo
        - limit
      service: service-foo
      rule: Path(`/foo`) || (Host(`foo.test`) && !Method("POST"))
      priority: 42
  middlewares:
    add-foo:
      addPrefix:
        prefix: "/foo"
    limit:
      rateLimit:
        average: 100
        period: 1m
        burst: 50
        sourceCriterion:
          ipStrategy:
            depth: 1
  services:
    service-foo:
      loadBalancer:
        servers:
          - url: http://private-ip-server-1/
            weight: 3
          - url: "http://private-ip-server-2:8080"
        healthCheck:
          path: /health
          interval: 10
          timeout: "3s"
        passHostHeader: true
        serversTransport: slow
  serversTransports:
    slow:
      maxIdleConnsPerHost: 7
      forwardingTimeouts:
        dialTimeout: 3s
        responseHeaderTimeout: 1m30s
"#,
    );
    run(dir.path(), ["check", &file]).expect(0);
}

#[test]
fn explain_says_which_router_and_why_not_the_others() {
    let (dir, file) = with(GOOD);
    let explain = |arguments: &[&str]| {
        let all: Vec<&str> =
            ["explain", "--config", &file].into_iter().chain(arguments.iter().copied()).collect();
        run(dir.path(), all)
    };

    let matched = explain(&["http://a.test/api/users"]).expect(0).stdout;
    for line in [
        "-> router api (priority 36)",
        "-> stripPrefix strip: path becomes \"/users\"",
        "-> service pods (wrr, attempts 3, connect 5s, response head 1m, pause 1m)",
        "http://127.0.0.1:9 weight 1",
        "not any (priority 32): matches too, but is asked later",
    ] {
        assert!(matched.contains(line), "no {line} in\n{matched}");
    }

    assert_eq!(explain(&["a.test/api/users"]).expect(0).stdout, matched, "as curl takes it, too");

    let missed = explain(&["-X", "POST", "-H", "X-A: 1", "http://b.test/api/users"]);
    assert!(
        missed.stdout.contains("Method(`GET`)") && missed.stdout.contains("Host(`a.test`)"),
        "{}",
        missed.stdout
    );
}

#[test]
fn explain_ends_where_a_middleware_would_answer() {
    let allow = "office: { ipAllowList: { sourceRange: [10.0.0.0/8] } }";
    let text = GOOD.replace("middlewares: [strip]", "middlewares: [office, strip]");
    let (dir, file) = with(&text.replace("middlewares: { strip", &format!("middlewares: {{ {allow}, strip")));
    let url = "http://a.test/api/users";

    let stranger = run(dir.path(), ["explain", "--config", &file, url]).expect(0).stdout;
    assert!(stranger.contains("-> ipAllowList office: answers with 403"), "{stranger}");
    assert!(!stranger.contains("-> service"), "{stranger}");

    let known =
        run(dir.path(), ["explain", "--config", &file, "--client-ip", "10.1.2.3", url]).expect(0).stdout;
    assert!(known.contains("-> service pods"), "{known}");
}

#[test]
fn a_dynamic_file_of_traefiks_passes_check_on_its_own() {
    let dynamic = GOOD.replace("entryPoints: { web: { address: \"127.0.0.1:0\" } }\n", "");
    let dynamic = dynamic.replace("service: pods }", "service: pods, entryPoints: [web, websecure] }");
    let (dir, file) = with(&dynamic);

    let report = run(dir.path(), ["check", &file]).expect(0).stdout;
    assert_eq!(report.matches("names of entry points are not checked").count(), 1, "{report}");

    // Entry points that are there, but wrong, are not elsewhere.
    let (dir, file) = with(&format!("entryPoints: {{ web: {{ address: \":80x\" }} }}\n{dynamic}"));
    let report = run(dir.path(), ["check", &file]).expect(1).stdout;
    assert!(report.contains("bad address") && !report.contains("are not checked"), "{report}");

    // With a static key it is a whole document, whose entry points are all there are.
    let (dir, file) = with(&format!("log: {{ level: DEBUG }}\n{dynamic}"));
    let report = run(dir.path(), ["check", &file]).expect(1).stdout;
    assert!(report.contains("unknown entry point \"websecure\""), "{report}");
}

#[test]
fn the_schema_is_json_and_knows_the_keys() {
    let dir = scratch();

    let finished = run(dir.path(), ["schema"]).expect(0);

    let schema: Value = serde_json::from_str(&finished.stdout).expect("JSON");
    assert!(schema["properties"]["entryPoints"].is_object(), "{}", finished.stdout);
    for key in ["rateLimit", "loadBalancer", "serversTransports", "requestAcceptGraceTimeout"] {
        assert!(finished.stdout.contains(&format!("\"{key}\"")), "no {key}");
    }
}

#[test]
fn version_and_help_are_there() {
    let dir = scratch();

    let version = run(dir.path(), ["--version"]).expect(0).stdout;
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    let help = run(dir.path(), ["--help"]).expect(0).stdout;
    for word in ["check", "explain", "schema", "healthcheck", "demo", "--config"] {
        assert!(help.contains(word), "no {word} in\n{help}");
    }
    let wrong = run(dir.path(), ["--cofnig", "x"]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
}

#[test]
fn shells_get_completions() {
    let dir = scratch();
    for shell in ["bash", "zsh", "fish"] {
        let script = run(dir.path(), ["completions", shell]).expect(0).stdout;
        assert!(script.contains("sluicegate"), "{shell}: {script}");
    }
}

#[test]
fn healthcheck_is_0_for_a_ready_proxy_and_1_for_none() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();
    let dir = scratch();
    let address = proxy.admin().to_string();

    run(dir.path(), ["healthcheck", "--address", &address]).expect(0);
    drop(proxy);

    let gone = run(dir.path(), ["healthcheck", "--address", &address]).expect(1);
    assert!(!(gone.stderr + &gone.stdout).is_empty(), "a word why");
}

#[test]
fn a_bad_first_file_ends_the_start_with_every_problem() {
    let (dir, _) = with(BAD);

    let finished = run(dir.path(), ["--config", "sluicegate.yaml"]);

    assert!(finished.code.is_some_and(|code| code != 0), "{:?}", finished.code);
    for word in ["Hots", "servcie", "nobody"] {
        assert!(finished.stderr.contains(word), "no {word} in\n{}", finished.stderr);
    }
}

#[test]
fn a_missing_first_file_ends_the_start() {
    let dir = scratch();

    let finished = run(dir.path(), ["--config", "nowhere.yaml"]);

    assert!(finished.code.is_some_and(|code| code != 0), "{:?}", finished.code);
    assert!(finished.stderr.contains("nowhere.yaml"), "{}", finished.stderr);
}

#[test]
fn an_address_in_use_ends_the_start() {
    let taken = origin().start();
    let (dir, _) = with(&format!(
        "entryPoints: {{ web: {{ address: \"{}\" }} }}\nadmin: {{ address: \"127.0.0.1:0\" }}\n",
        taken.address()
    ));

    let finished = run(dir.path(), ["--config", "sluicegate.yaml"]);

    assert!(finished.code.is_some_and(|code| code != 0), "{:?}", finished.code);
    assert!(finished.stderr.contains(&taken.address().to_string()), "{}", finished.stderr);
}

/// A process that is killed when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(dir: &Path, arguments: &[&str]) -> Running {
    let log = fs::File::create(dir.join("output.log")).expect("a writable directory");
    let child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a file"))
        .stderr(log)
        .spawn()
        .expect("the program starts");
    Running(child)
}

#[test]
fn without_arguments_the_file_of_the_working_directory_is_used() {
    let (dir, _) = with(
        &(GOOD.to_owned() + "admin: { address: \"127.0.0.1:0\" }\nlog: { format: json, level: INFO }\n"),
    );
    let _proxy = start(dir.path(), &[]);

    eventually("it listens", || {
        fs::read_to_string(dir.path().join("output.log")).unwrap_or_default().contains("admin listening")
    });
}

#[test]
fn the_demo_serves_invoices_and_says_what_to_try() {
    let dir = scratch();
    let mut demo = start(dir.path(), &["demo"]);
    let output = || fs::read_to_string(dir.path().join("output.log")).unwrap_or_default();
    // Whatever the wording: some URL of the loopback that answers with JSON, and a file to edit.
    let answers = |url: &str| {
        let rest = url.trim_start_matches("http://");
        let (address, path) = rest.split_once('/').unwrap_or((rest, ""));
        let address = address.replace("localhost", "127.0.0.1").parse().ok()?;
        let mut client = crate::harness::Client::try_connect(address, "localhost").ok()?;
        client.try_get(&format!("/{path}")).ok()
    };

    eventually("an invoice is served", || {
        let output = output();
        let urls = output.split([' ', '\n', '\'', '"', '`']).filter(|word| word.starts_with("http://"));
        urls.map(|url| url.trim_end_matches(['.', ',', ')'])).any(|url| {
            answers(url).is_some_and(|answer| {
                answer.status == 200 && serde_json::from_slice::<Value>(&answer.body).is_ok()
            })
        })
    });
    assert!(output().contains(".yaml"), "{}", output());
    let written = fs::read_dir(dir.path()).expect("a directory").flatten();
    assert!(
        written.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().ends_with(".yaml")),
        "no working copy"
    );
    assert!(demo.0.try_wait().expect("a child of ours").is_none(), "{}", output());
}
