//! Records to lines: Traefik's JSON, its common format, and the combined log format.
//!
//! Whatever a client sends, a record is one line, and a quoted part ends where its quote does.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::time::Duration;

use http::header::{REFERER, USER_AGENT};
use http::{HeaderName, Version};

use crate::telemetry::access_log::{
    AccessLogFormat, AccessLogSettings, AccessRecord, End, FieldMode, PickedFields,
};
use crate::telemetry::time::Utc;

/// Turns records into lines.
#[derive(Debug)]
pub(super) struct Formatter {
    format: AccessLogFormat,
    default_mode: FieldMode,
    /// Lower case.
    names: HashMap<String, FieldMode>,
    query: FieldMode,
    /// Lines so far.
    count: u64,
}

impl Formatter {
    pub(super) fn new(settings: &AccessLogSettings) -> Self {
        let fields = &settings.fields;
        Self {
            format: settings.format,
            default_mode: fields.default_mode,
            names: fields.names.iter().map(|(name, mode)| (name.to_ascii_lowercase(), *mode)).collect(),
            query: fields.query,
            count: 0,
        }
    }

    /// Appends the line of a record, its end included.
    pub(super) fn line(&mut self, record: &AccessRecord, out: &mut Vec<u8>) {
        self.count += 1;
        match self.format {
            AccessLogFormat::Json => self.json(record, out),
            AccessLogFormat::Common | AccessLogFormat::GenericClf => self.clf(record, out),
        }
        out.push(b'\n');
    }

    fn keeps(&self, name: &str) -> bool {
        let mode = if self.names.is_empty() {
            self.default_mode
        } else {
            self.names.get(&name.to_ascii_lowercase()).copied().unwrap_or(self.default_mode)
        };
        mode == FieldMode::Keep
    }

    fn path(&self, record: &AccessRecord) -> String {
        match &record.query {
            Some(query) if self.query == FieldMode::Keep => format!("{}?{query}", record.path),
            Some(_) | None => record.path.as_str().to_owned(),
        }
    }

    fn json(&self, record: &AccessRecord, out: &mut Vec<u8>) {
        let mut line = JsonLine { formatter: self, out, separator: '{' };
        let (host, port) = split_port(record.authority.as_str());
        let (client_ip, client_port) = (record.client.ip().to_string(), record.client.port().to_string());
        let started = Utc::of(record.start).rfc3339_nanos();
        let ended = record.start.checked_add(record.duration).unwrap_or(record.start);
        let ended = Utc::of(ended).rfc3339();
        let origin_duration = record.origin.map_or(Duration::ZERO, |origin| origin.duration);
        let (code, fault) = match record.end {
            End::Completed => ("completed", None),
            End::Failed { code, fault } => (code, Some(fault.as_str())),
        };

        // In the order of the alphabet, as Traefik's lines are.
        line.number("Attempts", u64::from(record.attempts));
        line.text("ClientAddr", &record.client.to_string());
        line.text("ClientHost", record.forwarded_for.as_ref().map_or(&client_ip, |text| text.as_str()));
        line.text("ClientPort", &client_port);
        line.text("ClientUsername", record.user.as_deref().unwrap_or("-"));
        line.number("DownstreamContentSize", record.response_bytes);
        line.number("DownstreamStatus", u64::from(record.status));
        line.number("Duration", nanos(record.duration));
        line.text("EndReason", code);
        if !record.tried.is_empty() && self.keeps("Endpoints") {
            line.key("Endpoints");
            let tried: Vec<String> = record.tried.iter().map(ToString::to_string).collect();
            line.value(&tried);
        }
        line.maybe("Fault", fault);
        line.number("Generation", record.generation);
        line.maybe("Limit", record.limit.as_deref());
        if let Some(origin) = record.origin {
            line.number("OriginContentSize", origin.bytes);
            line.number("OriginDuration", nanos(origin.duration));
            line.number("OriginStatus", u64::from(origin.status));
        }
        line.number("Overhead", nanos(record.duration.saturating_sub(origin_duration)));
        line.text("RequestAddr", record.authority.as_str());
        line.number("RequestContentSize", record.request_bytes);
        line.number("RequestCount", self.count);
        line.text("RequestHost", host);
        line.text("RequestMethod", record.method.as_str());
        line.text("RequestPath", &self.path(record));
        line.text("RequestPort", port.unwrap_or("-"));
        line.text("RequestProtocol", protocol(record.version));
        line.text("RequestScheme", record.scheme);
        line.number("RetryAttempts", u64::from(record.retries()));
        line.maybe("RouterName", record.router.as_ref().map(|name| name.as_str()));
        line.maybe("ServiceAddr", record.service_addr.as_ref().map(ToString::to_string).as_deref());
        line.maybe("ServiceName", record.service.as_ref().map(|name| name.as_str()));
        line.maybe("ServiceURL", record.service_url.as_deref());
        line.text("StartLocal", &started);
        line.text("StartUTC", &started);
        if let Some(tls) = &record.tls {
            line.text("TLSCipher", &tls.cipher);
            line.maybe("TLSClientSubject", tls.client_subject.as_deref());
            line.text("TLSVersion", tls.version);
        }
        line.fields("downstream_", &record.downstream_fields);
        line.text("entryPointName", record.entry_point.as_str());
        line.always("level", "info");
        line.always("msg", "");
        line.fields("origin_", &record.origin_fields);
        line.fields("request_", &record.request_fields);
        line.always("time", &ended);
        out.push(b'}');
    }

    fn clf(&self, record: &AccessRecord, out: &mut Vec<u8>) {
        let mut line = String::with_capacity(256);
        let kept = |name: &str, write: &dyn Fn(&mut String)| {
            let mut part = String::new();
            if self.keeps(name) {
                write(&mut part);
            }
            if part.is_empty() { "-".to_owned() } else { part }
        };
        let client_ip = record.client.ip().to_string();
        let host = record.forwarded_for.as_ref().map_or(client_ip.as_str(), |text| text.as_str());
        let user = record.user.as_deref().unwrap_or_default();
        let started = if self.keeps("StartUTC") || self.keeps("StartLocal") {
            Utc::of(record.start).common_log()
        } else {
            "-".to_owned()
        };
        let parts = [
            kept("ClientHost", &|part| escape(part, host, Blank::Escaped)),
            "-".to_owned(),
            kept("ClientUsername", &|part| escape(part, user, Blank::Escaped)),
            format!("[{started}]"),
            format!(
                "\"{} {} {}\"",
                kept("RequestMethod", &|part| escape(part, record.method.as_str(), Blank::Escaped)),
                kept("RequestPath", &|part| escape(part, &self.path(record), Blank::Escaped)),
                kept("RequestProtocol", &|part| part.push_str(protocol(record.version))),
            ),
            kept("DownstreamStatus", &|part| part.push_str(&record.status.to_string())),
            kept("DownstreamContentSize", &|part| part.push_str(&record.response_bytes.to_string())),
            quoted(&first(&record.request_fields, &REFERER)),
            quoted(&first(&record.request_fields, &USER_AGENT)),
        ];
        line.push_str(&parts.join(" "));
        if self.format == AccessLogFormat::Common {
            let router = record.router.as_ref().map_or("", |name| name.as_str());
            let url = record.service_url.as_deref().unwrap_or_default();
            let millis = if self.keeps("Duration") { record.duration.as_millis() } else { 0 };
            let count = kept("RequestCount", &|part| part.push_str(&self.count.to_string()));
            let router = quoted(if self.keeps("RouterName") { router } else { "" });
            let url = quoted(if self.keeps("ServiceURL") { url } else { "" });
            write!(line, " {count} {router} {url} {millis}ms").expect("a String takes every text");
        }
        out.extend_from_slice(line.as_bytes());
    }
}

/// A JSON object being written.
struct JsonLine<'a> {
    formatter: &'a Formatter,
    out: &'a mut Vec<u8>,
    separator: char,
}

impl JsonLine<'_> {
    fn text(&mut self, name: &str, value: &str) {
        if self.formatter.keeps(name) {
            self.always(name, value);
        }
    }

    fn maybe(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    fn number(&mut self, name: &str, value: u64) {
        if self.formatter.keeps(name) {
            self.key(name);
            write!(self.out, "{value}").expect("a Vec takes every byte");
        }
    }

    fn always(&mut self, name: &str, value: &str) {
        self.key(name);
        self.value(value);
    }

    /// Header fields, each name once, in Traefik's spelling.
    fn fields(&mut self, prefix: &str, fields: &PickedFields) {
        let mut names: Vec<&HeaderName> = fields.iter().map(|(name, _)| name).collect();
        names.sort_unstable_by_key(|name| name.as_str());
        names.dedup();
        for name in names {
            let values: Vec<_> = fields
                .iter()
                .filter(|(other, _)| other == name)
                .map(|(_, value)| String::from_utf8_lossy(value.as_bytes()))
                .collect();
            self.always(&format!("{prefix}{}", spelling(name)), &values.join(","));
        }
    }

    fn key(&mut self, name: &str) {
        write!(self.out, "{}", self.separator).expect("a Vec takes every byte");
        self.separator = ',';
        self.value(name);
        self.out.push(b':');
    }

    fn value(&mut self, value: &(impl serde::Serialize + ?Sized)) {
        serde_json::to_writer(&mut *self.out, value).expect("texts and lists of texts are JSON");
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}

/// Host and port of an authority; an IPv6 address keeps its brackets.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') && (host.ends_with(']') || !host.contains(':')) => {
            (host, Some(port))
        }
        Some(_) | None => (authority, None),
    }
}

/// `user-agent` as Go spells it: `User-Agent`.
fn spelling(name: &HeaderName) -> String {
    let mut upper = true;
    name.as_str()
        .chars()
        .map(|c| {
            let spelled = if upper { c.to_ascii_uppercase() } else { c };
            upper = c == '-';
            spelled
        })
        .collect()
}

fn first(fields: &PickedFields, name: &HeaderName) -> String {
    let value = fields.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_bytes());
    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
}

/// `"text"`, or `"-"` for nothing.
fn quoted(text: &str) -> String {
    let mut out = "\"".to_owned();
    escape(&mut out, if text.is_empty() { "-" } else { text }, Blank::Kept);
    out.push('"');
    out
}

/// Whether a blank would end the part.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Blank {
    Kept,
    Escaped,
}

/// Writes a text so that it ends neither its quotes nor its line: what is not printable ASCII, `"` and
/// `\` become `\xHH`, byte by byte, as nginx and Apache have it.
fn escape(out: &mut impl fmt::Write, text: &str, blank: Blank) {
    for byte in text.bytes() {
        let plain = match byte {
            b'"' | b'\\' => false,
            b' ' => blank == Blank::Kept,
            byte => byte.is_ascii_graphic(),
        };
        if plain { out.write_char(char::from(byte)) } else { write!(out, "\\x{byte:02X}") }
            .expect("a String takes every text");
    }
}
