//! `sluicegate explain`: what would become of a request, part by part.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HeaderName, HeaderValue};
use http::{Uri, Version};

use super::{Explain, colour, healthcheck, print};
use crate::balance::sticky::Sticky;
use crate::common::clock::Millis;
use crate::common::units::HumanDuration;
use crate::config::document::DocumentConfig;
use crate::config::load::Loader;
use crate::config::overload::OverloadConfig;
use crate::config::render;
use crate::endpoint::lobby::Limits;
use crate::endpoint::set::Tier;
use crate::http::authority;
use crate::http::fields::Fields;
use crate::http::forwarded::{Kind, Peer};
use crate::http::head::RequestHead;
use crate::http::text::Text;
use crate::matcher::{Considered, Explained, Subject};
use crate::middleware::{Around, Edit, Flow, Link, LinkContext};
use crate::proxy::serve::receive;
use crate::snapshot::compile::{EntryDraft, Remarks, compile};
use crate::snapshot::{Internal, Route, Service, ServiceKind};
use crate::telemetry::metrics::{Metrics, MetricsSettings};

pub(super) fn run(args: &Explain) -> Result<ExitCode, String> {
    let file = args.run.find()?;
    let mut loaded = Loader::new(&file).load();
    let mut problems = std::mem::take(&mut loaded.problems);
    let metrics = Metrics::new(MetricsSettings::default(), env!("CARGO_PKG_VERSION"));
    let draft = loaded.document.as_ref().map(|document| {
        let draft = compile(&document.config, None, &metrics, Remarks::NeverMatches, &mut problems);
        document.place(&mut problems);
        (document.refuses(&problems), draft)
    });
    let Some((false, draft)) = draft else {
        eprint!("{}", render::text(&problems, &loaded.texts, colour(&std::io::stderr())));
        return Err(format!("{} has errors", file.display()));
    };
    let request = head(args)?;
    let running = Running::of(args, loaded.document.as_ref().map(|document| &document.config));
    let mut out = String::new();
    let mut found = false;
    for entry in &draft.entry_points {
        let named = args.entry_point.as_deref().is_none_or(|name| name == entry.name.as_str());
        if named {
            found = true;
            explain(entry, request.clone(), args, &running, &mut out).map_err(|error| error.to_string())?;
        }
    }
    if let Some(document) = &loaded.document {
        guard(&document.config.overload, &mut out).map_err(|error| error.to_string())?;
    }
    if !found {
        return Err(format!("there is no entry point {:?}", args.entry_point.as_deref().unwrap_or("")));
    }
    print(&out)
}

fn head(args: &Explain) -> Result<RequestHead, String> {
    // As people say it, and as curl takes it: without a scheme.
    let bare = !args.url.contains("://") && !args.url.starts_with(['/', '*']);
    let url = if bare { Cow::Owned(format!("http://{}", args.url)) } else { Cow::Borrowed(&*args.url) };
    let uri: Uri = url.parse().map_err(|error| format!("bad URL {:?}: {error}", args.url))?;
    let mut authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let mut headers = Fields::new();
    for line in &args.headers {
        let bad = || format!("bad header {line:?}: write 'Name: value'");
        let (name, value) = line.split_once(':').ok_or_else(bad)?;
        let name = HeaderName::try_from(name.trim()).map_err(|_| bad())?;
        let value = HeaderValue::try_from(value.trim()).map_err(|_| bad())?;
        if name == http::header::HOST {
            authority = value.to_str().map_err(|_| bad())?.to_owned();
        } else {
            headers.append(name, value);
        }
    }
    Ok(RequestHead {
        method: args.method.parse().map_err(|_| format!("bad method {:?}", args.method))?,
        path: Text::copy_from(if uri.path().is_empty() { "/" } else { uri.path() }),
        query: uri.query().map(Text::copy_from),
        authority: authority.into(),
        version: Version::HTTP_11,
        headers,
    })
}

/// The proxy that runs with this configuration, if one does: it knows what is open now.
struct Running {
    admin: Option<SocketAddr>,
    path: String,
    /// What it says, once it was asked.
    circuits: OnceCell<Option<serde_json::Value>>,
}

impl Running {
    fn of(args: &Explain, config: Option<&DocumentConfig>) -> Self {
        let admin =
            args.admin.or_else(|| config.and_then(|config| config.admin.address).map(healthcheck::reachable));
        let base = config.and_then(|config| config.api.as_ref()).map_or("", |api| api.base_path.as_str());
        Self {
            admin,
            path: format!("{}/api/resilience", base.trim_end_matches('/')),
            circuits: OnceCell::new(),
        }
    }

    /// Whether a circuit is open, by the names of its middleware and its router.
    fn circuit(&self, middleware: &str, router: &str) -> String {
        let Some(admin) = self.admin else { return "unknown: there is no admin listener to ask".to_owned() };
        let ask = || {
            let answer = healthcheck::ask(admin, &self.path, PATIENCE, MAX_ANSWER).ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            serde_json::from_str(body).ok().filter(|_| head.starts_with("HTTP/1.1 200"))
        };
        let Some(shown) = self.circuits.get_or_init(ask) else {
            return format!("unknown: no proxy answers at {admin}");
        };
        let named = |circuit: &&serde_json::Value, key: &str, name: &str| {
            circuit[key].as_str().is_some_and(|shown| shown.strip_suffix("@file").unwrap_or(shown) == name)
        };
        let circuits = shown["circuits"].as_array().map_or(&[][..], Vec::as_slice);
        let circuit = circuits
            .iter()
            .find(|circuit| named(circuit, "middleware", middleware) && named(circuit, "router", router));
        match circuit {
            Some(circuit) => format!(
                "{} for {} s, opened {} times (says {admin})",
                circuit["state"].as_str().unwrap_or("unknown"),
                circuit["forSeconds"],
                circuit["opened"]
            ),
            None => format!("unknown: the proxy at {admin} has no such circuit"),
        }
    }
}

fn explain(
    entry: &EntryDraft,
    mut head: RequestHead,
    args: &Explain,
    running: &Running,
    out: &mut String,
) -> std::fmt::Result {
    writeln!(out, "entry point {} ({})", entry.name, entry.address)?;
    // `https://` asks for what a TLS connection gets.
    let secure = args.url.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("https://"));
    let routers = match (secure, entry.tls()) {
        (false, _) => entry.routers(),
        (true, Some(tls)) => &tls.routers,
        (true, None) => return writeln!(out, "  takes no TLS connections\n"),
    };
    let peer = Peer::new((args.client_ip, 0).into(), secure);
    let port = authority::port(head.authority.as_str());
    let prepared = match receive(entry.settings(), &mut head, port, &peer, Kind::Plain, &[]) {
        Ok(prepared) => prepared,
        Err(error) => return writeln!(out, "  answered with {}: {error}\n", error.status()),
    };
    let host = authority::host_for_matching(head.authority.as_str()).into_owned();
    let subject = Subject {
        host: &host,
        path: prepared.routing().as_str(),
        query: head.query.as_ref().map(Text::as_str),
        method: head.method.as_str(),
        headers: &head.headers,
        client_ip: peer.addr.ip(),
    };
    let query = subject.query.map(|query| format!(", query {query:?}")).unwrap_or_default();
    writeln!(
        out,
        "  {} for host {:?}, path {:?}{query}, from {}",
        head.method, host, subject.path, args.client_ip
    )?;
    if let Some(tls) = entry.tls().filter(|_| secure) {
        writeln!(out, "  TLS options {}", tls.options.find(Some(&host)).name)?;
    }
    let considered = routers.explain(&subject);
    let winner = considered.iter().position(|router| router.explained.matched);
    match winner {
        Some(winner) => {
            let router = &considered[winner];
            writeln!(out, "  -> router {} (priority {})", router.name, router.priority)?;
            parts(&router.explained, 5, out)?;
            head.path = prepared.upstream;
            way(router.target, head, &peer, running, out)?;
        }
        None if considered.is_empty() => writeln!(out, "  -> 404: it has no routers")?,
        None => writeln!(out, "  -> 404: no router matches")?,
    }
    others(&considered, winner, args.all, out)?;
    writeln!(out)
}

/// What becomes of a request that a router has taken: its chain, its service.
fn way(
    route: &Route,
    mut head: RequestHead,
    peer: &Peer,
    running: &Running,
    out: &mut String,
) -> std::fmt::Result {
    let mut context = LinkContext::new(peer.addr, peer.tls, Instant::now());
    for link in &route.chain {
        write!(out, "  -> {} {}", kind(&link.link), link.name)?;
        let before = head.path.as_str().to_owned();
        let outcome = match &link.link {
            // Whether a limit is reached depends on what else is going on: which one it is, does not.
            Link::Edit(Edit::RateLimit(limit)) => {
                writeln!(out)?;
                for line in limit.describe(&context, &head) {
                    writeln!(out, "     {line}")?;
                }
                continue;
            }
            Link::Edit(Edit::Bandwidth(limit)) => {
                writeln!(out)?;
                for (way, lane) in [("down", &limit.download), ("up", &limit.upload)] {
                    if let Some(lane) = lane {
                        writeln!(out, "     {way}: {lane}")?;
                    }
                }
                continue;
            }
            Link::Edit(Edit::InFlightReq(limit)) => {
                writeln!(out, "\n     {}", limit.describe(&context, &head))?;
                continue;
            }
            Link::Around(Around::CircuitBreaker(breaker)) => {
                writeln!(out)?;
                for line in breaker.describe() {
                    writeln!(out, "     {line}")?;
                }
                let (middleware, router) = breaker.names();
                writeln!(out, "     now {}", running.circuit(middleware.as_str(), router.as_str()))?;
                continue;
            }
            // It depends on what the service answers.
            Link::Around(Around::Retry(_)) => Ok(Flow::Next),
            Link::Edit(edit) => edit.on_request(&mut context, &mut head),
        };
        match outcome {
            Ok(Flow::Answer(answer)) => {
                return writeln!(out, ": answers with {}, and it ends here", answer.head.status);
            }
            Err(error) => {
                return writeln!(out, ": answers with {}: {error}, and it ends here", error.status());
            }
            Ok(_) if before != head.path.as_str() => {
                writeln!(out, ": path becomes {:?}", head.path.as_str())?
            }
            Ok(_) => writeln!(out)?,
        }
    }
    if let Some(field) = &route.timeouts.deadline_header {
        writeln!(out, "     the client may say in {field} how long it will wait")?;
    }
    service(&route.service, route, 2, out)
}

fn service(service: &Service, route: &Route, indent: usize, out: &mut String) -> std::fmt::Result {
    write!(out, "{:indent$}-> service {}", "", service.name)?;
    match &service.kind {
        ServiceKind::Balanced(balanced) => {
            let (transport, times) = (&balanced.transport, &route.timeouts);
            write!(
                out,
                " ({}, attempts {}, connect {}, response head {}, pause {}",
                balanced.balancer.strategy().as_str(),
                balanced.attempts,
                time(times.connect.unwrap_or(transport.dial_timeout)),
                time(times.response_header.unwrap_or(transport.response_header_timeout)),
                time(times.idle.unwrap_or(transport.idle_timeout)),
            )?;
            for (limit, what) in [
                (times.attempt.unwrap_or(transport.attempt_timeout), "each attempt"),
                (times.request.unwrap_or(transport.request_timeout), "all in all"),
            ] {
                if limit != 0 {
                    write!(out, ", {what} {}", time(limit))?;
                }
            }
            writeln!(out, ")")?;
            if let Some(lobby) = &balanced.lobby {
                places(&lobby.limits(), indent, out)?;
            }
            if let Some(adaptive) = &balanced.adaptive {
                let settings = adaptive.settings();
                writeln!(
                    out,
                    "{:indent$}   adaptive concurrency: between {} and {} requests at once, {} to begin with",
                    "", settings.min, settings.max, settings.initial
                )?;
            }
            if let Some(hedge) = &balanced.hedge {
                let settings = hedge.settings();
                write!(out, "{:indent$}   a second try beside the first after {}", "", time(settings.delay))?;
                match settings.percent {
                    0.0 => writeln!(out)?,
                    percent => writeln!(out, ", and not before {percent} % of the answers would have come")?,
                }
            }
            if let Some(by) = &balanced.hash_by {
                write!(out, "{:indent$}   by {}", "", by.describe())?;
                match balanced.balancer.max_load() {
                    Some(bound) => writeln!(out, ", an endpoint has at most {} % of its share", bound.get())?,
                    None => writeln!(out)?,
                }
            }
            if let Some(sticky) = &balanced.sticky {
                cookie(sticky, indent, out)?;
            }
            if let Some(outbound) = &balanced.outbound {
                let limit = outbound.pace.limit();
                for quota in limit.windows().iter().map(|window| &window.quota) {
                    let nanos = std::time::Duration::from_nanos;
                    writeln!(
                        out,
                        "{:indent$}   {} requests out per {}, {} at once, waiting up to {}",
                        "",
                        quota.average(),
                        HumanDuration(nanos(quota.period())),
                        quota.burst(),
                        HumanDuration(nanos(quota.max_delay())),
                    )?;
                }
                if let Some(shared) = outbound.pace.shared() {
                    writeln!(out, "{:indent$}   shared through {shared}", "")?;
                }
            }
            let set = balanced.endpoints.load();
            if set.members().is_empty() {
                writeln!(out, "{:indent$}   no endpoints: 503", "")?;
            }
            if balanced.endpoints.discovers() {
                writeln!(out, "{:indent$}   names are looked up: each of their addresses is a server", "")?;
            }
            for member in set.members() {
                let url = member.endpoint.url().as_str();
                write!(out, "{:indent$}   {url} weight {}", "", member.configured)?;
                match member.tier {
                    _ if member.configured == 0 => writeln!(out, ": serves only those who hold its cookie")?,
                    Tier::Near => writeln!(out)?,
                    Tier::OtherZone(percent) => {
                        writeln!(
                            out,
                            ": in another zone, when less than {percent} % of this one is available"
                        )?;
                    }
                    Tier::Backup(0) => writeln!(out, ": a backup, when no other is available")?,
                    Tier::Backup(percent) => {
                        writeln!(out, ": a backup, when less than {percent} % of the others is available")?;
                    }
                }
            }
            Ok(())
        }
        ServiceKind::Weighted(weighted) => {
            writeln!(out, " (weighted: one of these)")?;
            if let Some(children) = &weighted.sticky {
                cookie(&children.sticky, indent, out)?;
            }
            weighted.children.iter().try_for_each(|child| self::service(child, route, indent + 3, out))
        }
        ServiceKind::Hashed(hashed) => {
            writeln!(out, " (highestRandomWeight: one of these, by the client's address)")?;
            hashed.children.iter().try_for_each(|child| self::service(child, route, indent + 3, out))
        }
        ServiceKind::Failover(failover) => {
            writeln!(out, " (failover: the first while it is available, else the second)")?;
            if let Some(errors) = &failover.errors {
                let range = |(first, last): &(u16, u16)| match first == last {
                    true => first.to_string(),
                    false => format!("{first}-{last}"),
                };
                let status: Vec<String> = errors.status.iter().map(range).collect();
                writeln!(
                    out,
                    "{:indent$}   and the second when the first answers {}",
                    "",
                    status.join(", ")
                )?;
            }
            self::service(&failover.service, route, indent + 3, out)?;
            self::service(&failover.fallback, route, indent + 3, out)
        }
        ServiceKind::Mirroring(mirroring) => {
            writeln!(out, " (mirroring: the first answers, the others get copies)")?;
            self::service(&mirroring.service, route, indent + 3, out)?;
            mirroring.mirrors.iter().try_for_each(|mirror| {
                writeln!(out, "{:indent$}   {} % of the requests to", "", mirror.percent.get())?;
                self::service(&mirror.service, route, indent + 3, out)
            })
        }
        ServiceKind::Internal(internal) => {
            let what = match internal {
                Internal::Api => "the API",
                Internal::Ping => "ping",
                Internal::Prometheus => "metrics",
                Internal::Noop => "418",
            };
            writeln!(out, " ({what} of the proxy itself)")
        }
    }
}

/// When the whole proxy refuses requests.
fn guard(overload: &OverloadConfig, out: &mut String) -> std::fmt::Result {
    if overload.max_connections > 0 {
        writeln!(out, "overload: new connections get 503 beyond {}", overload.max_connections)?;
    }
    match overload.max_memory.bytes() {
        0 => Ok(()),
        bytes => {
            writeln!(out, "overload: requests get 503 from 90 % of {} MiB on, by importance", bytes >> 20)
        }
    }
}

/// What may be under way at once, and what becomes of the rest.
fn places(limits: &Limits, indent: usize, out: &mut String) -> std::fmt::Result {
    let limits_of = [
        (limits.requests, "requests at once"),
        (limits.connections, "connections"),
        (limits.requests_each, "requests at once to each server"),
        (limits.connections_each, "connections to each server"),
    ];
    let said: Vec<_> =
        limits_of.iter().filter(|(max, _)| *max > 0).map(|(max, what)| format!("{max} {what}")).collect();
    let rest = match (limits.waiting, limits.patience) {
        (0, _) | (_, 0) => "the rest gets 503".to_owned(),
        (waiting, patience) => format!("{waiting} more wait up to {}", time(patience)),
    };
    writeln!(out, "{:indent$}   at most {}; {rest}", "", said.join(", "))
}

fn cookie(sticky: &Sticky, indent: usize, out: &mut String) -> std::fmt::Result {
    let signed = if sticky.is_signed() { ", signed" } else { "" };
    writeln!(out, "{:indent$}   sticky by cookie {}{signed}", "", sticky.name())
}

/// Why the other routers did not take it, in the order in which they are asked.
fn others(
    considered: &[Considered<'_, Arc<Route>>],
    winner: Option<usize>,
    all: bool,
    out: &mut String,
) -> std::fmt::Result {
    let mut left_out = 0;
    let mut shown = 0;
    for (position, router) in considered.iter().enumerate() {
        if Some(position) == winner {
            continue;
        }
        if !all && shown == MAX_OTHERS {
            left_out += 1;
            continue;
        }
        shown += 1;
        let verdict =
            if router.explained.matched { "matches too, but is asked later" } else { "does not match" };
        writeln!(out, "  not {} (priority {}): {verdict}", router.name, router.priority)?;
        parts(&router.explained, 6, out)?;
    }
    if left_out > 0 {
        writeln!(out, "  and {left_out} routers more; --all shows them")?;
    }
    Ok(())
}

fn kind(link: &Link) -> &'static str {
    match link {
        Link::Edit(Edit::Headers(_)) => "headers",
        Link::Edit(Edit::StripPrefix(_)) => "stripPrefix",
        Link::Edit(Edit::AddPrefix(_)) => "addPrefix",
        Link::Edit(Edit::IpAllowList(_)) => "ipAllowList",
        Link::Edit(Edit::InFlightReq(_)) => "inFlightReq",
        Link::Edit(Edit::RateLimit(_)) => "rateLimit",
        Link::Edit(Edit::Bandwidth(_)) => "bandwidth",
        Link::Edit(Edit::RedirectScheme(_)) => "redirectScheme",
        Link::Around(Around::Retry(_)) => "retry",
        Link::Around(Around::CircuitBreaker(_)) => "circuitBreaker",
    }
}

fn parts(explained: &Explained, indent: usize, out: &mut String) -> std::fmt::Result {
    let verdict = if explained.matched { "yes" } else { "no " };
    match explained.had.as_deref().filter(|_| !explained.matched) {
        Some(had) => writeln!(out, "{:indent$}{verdict} {}: {had}", "", explained.text)?,
        None => writeln!(out, "{:indent$}{verdict} {}", "", explained.text)?,
    }
    explained.parts.iter().try_for_each(|part| parts(part, indent + 2, out))
}

/// A limit for people; 0 is none.
fn time(limit: Millis) -> String {
    if limit == 0 { "no limit".to_owned() } else { HumanDuration::millis(limit).to_string() }
}

/// Routers that did not take the request and are shown all the same. A screen or two; a file may have thousands.
const MAX_OTHERS: usize = 20;
/// How long the running proxy may take for a step of its answer, and how long that may be.
const PATIENCE: Duration = Duration::from_millis(500);
const MAX_ANSWER: u64 = 16 * 1024 * 1024;
