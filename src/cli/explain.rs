//! `sluicegate explain`: what would become of a request, part by part.

use std::borrow::Cow;
use std::fmt::Write;
use std::process::ExitCode;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Uri, Version};

use super::{Explain, colour, print};
use crate::config::load::Loader;
use crate::config::render;
use crate::http::authority;
use crate::http::forwarded::{Kind, Peer};
use crate::http::head::RequestHead;
use crate::http::path;
use crate::http::text::Text;
use crate::matcher::{Considered, Explained, Subject};
use crate::middleware::{Around, Edit, Link};
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
    let mut out = String::new();
    let mut found = false;
    for entry in &draft.entry_points {
        let named = args.entry_point.as_deref().is_none_or(|name| name == entry.name.as_str());
        if named {
            found = true;
            explain(entry, request.clone(), args, &mut out).map_err(|error| error.to_string())?;
        }
    }
    if !found {
        return Err(format!("there is no entry point {:?}", args.entry_point.as_deref().unwrap_or("")));
    }
    print(&out)
}

fn head(args: &Explain) -> Result<RequestHead, String> {
    let uri: Uri = args.url.parse().map_err(|error| format!("bad URL {:?}: {error}", args.url))?;
    let mut authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let mut headers = HeaderMap::new();
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

fn explain(entry: &EntryDraft, mut head: RequestHead, args: &Explain, out: &mut String) -> std::fmt::Result {
    writeln!(out, "entry point {} ({})", entry.name, entry.address)?;
    let settings = entry.settings();
    let prepared = match path::prepare(&head.path, &settings.path) {
        Ok(prepared) => prepared,
        Err(error) => return writeln!(out, "  refused with {}: {error}\n", error.status()),
    };
    if let Some(query) = &head.query
        && let Cow::Owned(changed) = path::query_semicolons(query.as_str(), settings.semicolons)
    {
        head.query = Some(changed.into());
    }
    let peer = Peer::new((args.client_ip, 0).into(), false);
    let port = authority::port(head.authority.as_str());
    settings.forwarded.receive(&mut head, port, &peer, Kind::Plain, &[]);
    let host = authority::host_for_matching(head.authority.as_str());
    let subject = Subject {
        host: &host,
        path: prepared.routing().as_str(),
        query: head.query.as_ref().map(Text::as_str),
        method: head.method.as_str(),
        headers: &head.headers,
        client_ip: peer.addr.ip(),
    };
    writeln!(out, "  request: {} host {:?} path {:?}", subject.method, subject.host, subject.path)?;
    let considered = entry.routers().explain(&subject);
    if considered.is_empty() {
        writeln!(out, "  no routers: 404")?;
    }
    let winner = considered.iter().find(|router| router.explained.matched);
    match winner {
        Some(router) => destination(router, out)?,
        None => writeln!(out, "  no router matches: 404")?,
    }
    writeln!(out, "  routers in the order in which they are asked:")?;
    for router in &considered {
        let verdict = match (router.explained.matched, winner) {
            (true, Some(winner)) if std::ptr::eq(winner, router) => "takes it",
            (true, _) => "would match, but comes later",
            (false, _) => "does not match",
        };
        writeln!(out, "    {} (priority {}): {verdict}", router.name, router.priority)?;
        parts(&router.explained, 6, out)?;
    }
    writeln!(out)
}

fn destination(router: &Considered<'_, std::sync::Arc<Route>>, out: &mut String) -> std::fmt::Result {
    let route = router.target;
    writeln!(out, "  router: {}", router.name)?;
    if route.chain.is_empty() {
        writeln!(out, "  middlewares: none")?;
    } else {
        let chain: Vec<_> =
            route.chain.iter().map(|link| format!("{} ({})", link.name, kind(&link.link))).collect();
        writeln!(out, "  middlewares: {}", chain.join(" -> "))?;
    }
    service(&route.service, 2, out)
}

fn service(service: &Service, indent: usize, out: &mut String) -> std::fmt::Result {
    match &service.kind {
        ServiceKind::Balanced(balanced) => {
            writeln!(
                out,
                "{:indent$}service: {} ({})",
                "",
                service.name,
                balanced.balancer.strategy().as_str()
            )?;
            for member in balanced.endpoints.load().members() {
                writeln!(out, "{:indent$}  {} weight {}", "", member.endpoint.url().as_str(), member.weight)?;
            }
            Ok(())
        }
        ServiceKind::Weighted(weighted) => {
            writeln!(out, "{:indent$}service: {} (weighted)", "", service.name)?;
            weighted.children.iter().try_for_each(|child| self::service(child, indent + 2, out))
        }
        ServiceKind::Internal(internal) => {
            let what = match internal {
                Internal::Api => "the API",
                Internal::Ping => "ping",
                Internal::Prometheus => "metrics",
                Internal::Noop => "418",
            };
            writeln!(out, "{:indent$}service: {} ({what} of the proxy itself)", "", service.name)
        }
    }
}

fn kind(link: &Link) -> &'static str {
    match link {
        Link::Edit(Edit::Headers(_)) => "headers",
        Link::Edit(Edit::StripPrefix(_)) => "stripPrefix",
        Link::Edit(Edit::AddPrefix(_)) => "addPrefix",
        Link::Edit(Edit::IpAllowList(_)) => "ipAllowList",
        Link::Edit(Edit::InFlightReq(_)) => "inFlightReq",
        Link::Edit(Edit::RateLimit(_)) => "rateLimit",
        Link::Around(Around::Retry(_)) => "retry",
    }
}

fn parts(explained: &Explained, indent: usize, out: &mut String) -> std::fmt::Result {
    let verdict = if explained.matched { "yes" } else { "no " };
    match &explained.had {
        Some(had) => writeln!(out, "{:indent$}{verdict} {} (the request has {had})", "", explained.text)?,
        None => writeln!(out, "{:indent$}{verdict} {}", "", explained.text)?,
    }
    explained.parts.iter().try_for_each(|part| parts(part, indent + 2, out))
}
