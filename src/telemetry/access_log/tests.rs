//! Lines byte for byte, and what happens when the disk or an attacker does not play along.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{Method, Version};
use serde_json::{Value, json};
use smallvec::smallvec;

use super::*;
use crate::common::names::{EntryPointName, RouterName, ServiceName};
use crate::http::error::{EndpointText, ProxyError};
use crate::http::text::Text;

const PATIENCE: Duration = Duration::from_secs(10);

/// 2006-01-02T15:04:05Z
fn start() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_136_214_245)
}

fn record() -> AccessRecord {
    AccessRecord {
        start: start(),
        duration: Duration::from_millis(1_234),
        entry_point: EntryPointName::new("web"),
        router: Some(RouterName::new("api")),
        service: Some(ServiceName::new("pods")),
        service_url: Some("http://10.0.0.1:8080".into()),
        service_addr: Some(EndpointText::Name("10.0.0.1:8080".into())),
        client: "192.0.2.7:54321".parse().expect("an address"),
        forwarded_for: None,
        user: None,
        method: Method::GET,
        authority: Text::from_static("a.test:8443"),
        path: Text::from_static("/invoices"),
        query: Some(Text::from_static("page=2")),
        version: Version::HTTP_11,
        scheme: "https",
        tls: None,
        request_bytes: 0,
        origin: Some(OriginPart { status: 200, duration: Duration::from_millis(1_000), bytes: 17 }),
        status: 200,
        response_bytes: 17,
        attempts: 2,
        tried: smallvec![
            EndpointText::Name("10.0.0.2:8080".into()),
            EndpointText::Name("10.0.0.1:8080".into())
        ],
        end: End::Completed,
        limit: None,
        generation: 3,
        request_fields: PickedFields::new(),
        origin_fields: PickedFields::new(),
        downstream_fields: PickedFields::new(),
    }
}

fn refused() -> AccessRecord {
    AccessRecord {
        router: None,
        service: None,
        service_url: None,
        service_addr: None,
        origin: None,
        status: 404,
        attempts: 0,
        tried: smallvec![],
        end: End::from(&ProxyError::NoRoute),
        ..record()
    }
}

fn settings(path: &Path, format: AccessLogFormat) -> AccessLogSettings {
    AccessLogSettings { target: LogTarget::File(path.to_owned()), format, ..AccessLogSettings::default() }
}

/// The lines that a log with these settings writes.
fn written(settings: AccessLogSettings, records: impl IntoIterator<Item = AccessRecord>) -> String {
    let LogTarget::File(path) = settings.target.clone() else { panic!("a file") };
    let log = AccessLog::start(settings).expect("a log");
    for record in records {
        log.log(record);
    }
    assert!(log.close(PATIENCE));
    std::fs::read_to_string(path).expect("the file")
}

fn formatted(format: AccessLogFormat, records: impl IntoIterator<Item = AccessRecord>) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    written(settings(&dir.path().join("made/access.log"), format), records)
}

fn headers(fields: &[(&'static str, &'static str)]) -> Fields {
    let mut headers = Fields::new();
    for (name, value) in fields {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers
}

#[test]
fn the_common_format_is_traefiks() {
    assert_eq!(
        formatted(AccessLogFormat::Common, [record(), refused()]),
        concat!(
            r#"192.0.2.7 - - [02/Jan/2006:15:04:05 +0000] "GET /invoices?page=2 HTTP/1.1" 200 17 "-" "-" 1 "api" "http://10.0.0.1:8080" 1234ms"#,
            "\n",
            r#"192.0.2.7 - - [02/Jan/2006:15:04:05 +0000] "GET /invoices?page=2 HTTP/1.1" 404 17 "-" "-" 2 "-" "-" 1234ms"#,
            "\n",
        )
    );
}

#[test]
fn the_generic_format_is_the_combined_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut settings = settings(&dir.path().join("access.log"), AccessLogFormat::GenericClf);
    settings.fields.default_header_mode = HeaderMode::Keep;
    settings.fields.query = FieldMode::Drop;
    let log = AccessLog::start(settings).expect("a log");
    let request_fields =
        log.pick(&headers(&[("referer", "https://b.test/"), ("user-agent", "curl/8"), ("cookie", "secret")]));
    assert_eq!(request_fields.len(), 2);
    log.log(AccessRecord {
        request_fields,
        user: Some("ann".into()),
        forwarded_for: Some(Text::from_static("198.51.100.9")),
        ..record()
    });
    assert!(log.close(PATIENCE));
    assert_eq!(
        std::fs::read_to_string(dir.path().join("access.log")).expect("the file"),
        concat!(
            r#"198.51.100.9 - ann [02/Jan/2006:15:04:05 +0000] "GET /invoices HTTP/1.1" 200 17 "https://b.test/" "curl/8""#,
            "\n"
        )
    );
}

#[test]
fn json_has_traefiks_fields_and_says_why_the_exchange_ended() {
    let text = formatted(AccessLogFormat::Json, [record()]);
    let expected = concat!(
        r#"{"Attempts":2,"ClientAddr":"192.0.2.7:54321","ClientHost":"192.0.2.7","ClientPort":"54321","#,
        r#""ClientUsername":"-","DownstreamContentSize":17,"DownstreamStatus":200,"Duration":1234000000,"#,
        r#""EndReason":"completed","Endpoints":["10.0.0.2:8080","10.0.0.1:8080"],"Generation":3,"#,
        r#""OriginContentSize":17,"OriginDuration":1000000000,"OriginStatus":200,"Overhead":234000000,"#,
        r#""RequestAddr":"a.test:8443","RequestContentSize":0,"RequestCount":1,"RequestHost":"a.test","#,
        r#""RequestMethod":"GET","RequestPath":"/invoices?page=2","RequestPort":"8443","#,
        r#""RequestProtocol":"HTTP/1.1","RequestScheme":"https","RetryAttempts":1,"RouterName":"api","#,
        r#""ServiceAddr":"10.0.0.1:8080","ServiceName":"pods","ServiceURL":"http://10.0.0.1:8080","#,
        r#""StartLocal":"2006-01-02T15:04:05.000000000Z","StartUTC":"2006-01-02T15:04:05.000000000Z","#,
        r#""entryPointName":"web","level":"info","msg":"","time":"2006-01-02T15:04:06Z"}"#,
        "\n"
    );
    assert_eq!(text, expected);

    let line: Value =
        serde_json::from_str(formatted(AccessLogFormat::Json, [refused()]).trim_end()).expect("JSON");
    assert_eq!(
        (&line["EndReason"], &line["Fault"], &line["RetryAttempts"]),
        (&json!("no_route"), &json!("client"), &json!(0))
    );
    for absent in ["RouterName", "ServiceName", "ServiceURL", "OriginStatus", "Endpoints"] {
        assert!(line.get(absent).is_none(), "{absent}");
    }
}

#[test]
fn fields_can_be_dropped_and_header_fields_kept_or_redacted() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut settings = settings(&dir.path().join("access.log"), AccessLogFormat::Json);
    settings.fields.default_mode = FieldMode::Drop;
    settings.fields.names = HashMap::from([("downstreamstatus".to_owned(), FieldMode::Keep)]);
    settings.fields.header_names = HashMap::from([
        ("User-Agent".to_owned(), HeaderMode::Keep),
        ("authorization".to_owned(), HeaderMode::Redact),
        ("X-Tag".to_owned(), HeaderMode::Keep),
    ]);
    let log = AccessLog::start(settings).expect("a log");
    let request_fields = log.pick(&headers(&[
        ("authorization", "Bearer secret"),
        ("user-agent", "curl/8"),
        ("x-tag", "a"),
        ("x-tag", "b"),
        ("cookie", "secret"),
    ]));
    assert!(!format!("{request_fields:?}").contains("secret"), "secrets do not even reach the queue");
    log.log(AccessRecord { request_fields, ..record() });
    assert!(log.close(PATIENCE));
    let text = std::fs::read_to_string(dir.path().join("access.log")).expect("the file");
    assert_eq!(
        text,
        concat!(
            r#"{"DownstreamStatus":200,"level":"info","msg":"","request_Authorization":"REDACTED","#,
            r#""request_User-Agent":"curl/8","request_X-Tag":"a,b","time":"2006-01-02T15:04:06Z"}"#,
            "\n"
        )
    );
}

#[test]
fn nothing_is_picked_when_no_header_field_is_wanted() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = AccessLog::start(settings(&dir.path().join("a.log"), AccessLogFormat::Json)).expect("a log");
    assert!(log.pick(&headers(&[("user-agent", "curl/8")])).is_empty());
}

#[test]
fn credentials_are_kept_only_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut settings = settings(&dir.path().join("a.log"), AccessLogFormat::Json);
    settings.fields.default_header_mode = HeaderMode::Keep;
    settings.fields.header_names = HashMap::from([("cookie".to_owned(), HeaderMode::Keep)]);
    let log = AccessLog::start(settings).expect("a log");
    let picked = log.pick(&headers(&[("authorization", "Bearer x"), ("cookie", "c"), ("accept", "a")]));
    let values: Vec<_> = picked.iter().map(|(_, value)| value.as_bytes()).collect();
    assert_eq!(values, [b"REDACTED".as_slice(), b"c", b"a"]);
}

#[test]
fn a_client_cannot_forge_lines_or_parts_of_lines() {
    let agent = HeaderValue::from_bytes(b"x\" 200 1 \\ \xff\t\x80").expect("bytes a field may have");
    let evil = AccessRecord {
        path: Text::from("/\"\u{7f}\u{1b}[31m\n".to_owned()),
        query: None,
        forwarded_for: Some(Text::from_static("1.2.3.4 - - [forged]\r\n")),
        user: Some("ann \" bob".into()),
        request_fields: smallvec![(USER_AGENT, agent)],
        ..record()
    };
    assert_eq!(
        formatted(AccessLogFormat::Common, [evil.clone()]),
        concat!(
            r#"1.2.3.4\x20-\x20-\x20[forged]\x0D\x0A - ann\x20\x22\x20bob [02/Jan/2006:15:04:05 +0000] "#,
            r#""GET /\x22\x7F\x1B[31m\x0A HTTP/1.1" 200 17 "-" "#,
            r#""x\x22 200 1 \x5C \xEF\xBF\xBD\x09\xEF\xBF\xBD" 1 "api" "http://10.0.0.1:8080" 1234ms"#,
            "\n"
        )
    );
    let text = formatted(AccessLogFormat::Json, [evil]);
    assert_eq!(text.lines().count(), 1);
    let line: Value = serde_json::from_str(text.trim_end()).expect("JSON");
    assert_eq!(line["RequestPath"], json!("/\"\u{7f}\u{1b}[31m\n"));
}

#[test]
fn a_line_passes_if_any_filter_wants_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let with = |filters| {
        let settings =
            AccessLogSettings { filters, ..settings(&dir.path().join("a.log"), AccessLogFormat::Json) };
        AccessLog::start(settings).expect("a log")
    };
    let second = Duration::from_secs(1);
    assert!(with(AccessLogFilters::default()).accepts(200, 0, Duration::ZERO));
    let log = with(AccessLogFilters {
        status_codes: vec![404..=404, 500..=599],
        retry_attempts: true,
        min_duration: second,
    });
    for (status, retries, duration, accepted) in [
        (200, 0, second, false),
        (404, 0, second, true),
        (403, 0, second, false),
        (599, 0, second, true),
        (200, 1, second, true),
        (200, 0, second * 2, true),
    ] {
        assert_eq!(log.accepts(status, retries, duration), accepted, "{status} {retries} {duration:?}");
    }
}

#[test]
fn a_stuck_disk_fills_the_queue_and_never_blocks_a_core() {
    let dir = tempfile::tempdir().expect("a directory");
    // A pipe that nobody reads: the writer hangs in its first write once the pipe is full.
    let path = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo");
    assert!(made.success());
    let reader = {
        let path = path.clone();
        std::thread::spawn(move || std::fs::File::open(path).expect("the reading end"))
    };
    let settings = AccessLogSettings { queue: 0, ..settings(&path, AccessLogFormat::Json) };
    let log = AccessLog::start(settings).expect("a log");
    let reader = reader.join().expect("the reading end");

    // A line is more than 500 bytes, a pipe takes 64 KB, the queue 4,096: most must be dropped, and none may wait.
    const LINES: u64 = 20_000;
    for _ in 0..LINES {
        log.log(record());
    }
    let counts = log.counts();
    assert!(counts.dropped.load(Ordering::Relaxed) > LINES / 2, "{counts:?}");
    assert!(!log.close(Duration::from_millis(50)), "waiting must end, too");
    // The reading end goes: the writer's write fails and it ends; what it held is counted.
    drop(reader);
    assert!(log.signals.wait_until_ended(Instant::now() + PATIENCE));
    let [written, dropped, failed] =
        [&counts.written, &counts.dropped, &counts.failed].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(written + dropped + failed, LINES, "{counts:?}");
    assert!(failed > 0);
}

#[test]
fn a_rotated_file_is_left_alone_after_reopen() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, old) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let log = AccessLog::start(settings(&path, AccessLogFormat::Common)).expect("a log");
    let wait_for = |lines: u64| {
        let deadline = Instant::now() + PATIENCE;
        while log.counts.written.load(Ordering::Relaxed) < lines {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    };
    log.log(record());
    wait_for(1);
    std::fs::rename(&path, &old).expect("a rename");
    log.log(record());
    wait_for(2);
    assert!(!path.exists(), "the old file is written to until it is reopened");
    log.reopen();
    let deadline = Instant::now() + PATIENCE;
    while !path.exists() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    log.log(record());
    assert!(log.close(PATIENCE));
    let lines = |path: &Path| std::fs::read_to_string(path).expect("the file").lines().count();
    assert_eq!((lines(&old), lines(&path)), (2, 1));
}

#[test]
fn what_was_handed_over_is_written_when_the_last_owner_lets_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("access.log");
    let log = AccessLog::start(settings(&path, AccessLogFormat::Common)).expect("a log");
    for _ in 0..1_000 {
        log.log(record());
    }
    let signals = Arc::clone(&log.signals);
    drop(log);
    assert!(signals.wait_until_ended(Instant::now() + PATIENCE));
    assert_eq!(std::fs::read_to_string(&path).expect("the file").lines().count(), 1_000);
}

#[test]
fn a_line_after_the_end_is_dropped_and_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = AccessLog::start(settings(&dir.path().join("a.log"), AccessLogFormat::Json)).expect("a log");
    assert!(log.close(PATIENCE));
    assert!(log.close(PATIENCE), "closing twice is fine");
    log.log(record());
    assert_eq!(log.counts.dropped.load(Ordering::Relaxed), 1);
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("file");
    std::fs::write(&path, "").expect("a file");
    assert!(AccessLog::start(settings(&path.join("below"), AccessLogFormat::Json)).is_err());
}
