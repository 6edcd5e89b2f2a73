//! What the middlewares' tests share: definitions from YAML, heads, contexts.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use http::{HeaderName, HeaderValue, Method, StatusCode, Version};

use crate::common::clock;
use crate::common::names::{MiddlewareName, RouterName};
use crate::common::problem::{ConfigPath, Problems, Severity};
use crate::http::fields::Fields;
use crate::http::head::{RequestHead, ResponseHead};
use crate::http::text::Text;
use crate::limit::Stores;
use crate::matcher::PathMatching;

use super::{Around, CircuitBreaker, CompileContext, Edit, Link, LinkContext, MiddlewareConfig, Retry};

/// What compiling one middleware came to.
pub(super) struct Compiled {
    pub(super) link: Option<Link>,
    errors: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl Compiled {
    /// Paths of the errors.
    pub(super) fn errors(&self) -> &[String] {
        assert!(self.errors.is_empty() || self.link.is_none(), "a link in spite of errors");
        &self.errors
    }
}

/// Reads a map of middlewares.
pub(super) fn definitions(text: &str) -> BTreeMap<MiddlewareName, MiddlewareConfig> {
    let read: BTreeMap<String, MiddlewareConfig> = serde_yaml::from_str(text).expect("the test's own YAML");
    read.into_iter().map(|(name, config)| (MiddlewareName::new(&name), config)).collect()
}

/// Compiles `kind` with these options; paths begin at `kind`.
pub(super) fn compile(kind: &str, options: &str, path_matching: PathMatching) -> Compiled {
    let defs = definitions(&format!("{{m: {{{kind}: {options}}}}}"));
    let (mut found, mut stores) = (Problems::new(), Stores::new());
    let router = RouterName::new("r");
    let mut cx = CompileContext { problems: &mut found, stores: &mut stores, router: &router, path_matching };
    let link = defs["m"].compile(&MiddlewareName::new("m"), &ConfigPath::of(&[kind]), &mut cx);
    let paths = |severity| {
        let of_it = found.iter().filter(|problem| problem.severity == severity);
        of_it.map(|problem| problem.path.to_string()).collect()
    };
    Compiled { link, errors: paths(Severity::Error), warnings: paths(Severity::Warning) }
}

pub(super) fn problems(kind: &str, options: &str) -> Compiled {
    compile(kind, options, PathMatching::default())
}

/// An edit link without problems.
pub(super) fn edit(kind: &str, options: &str) -> Edit {
    let compiled = problems(kind, options);
    assert_eq!(compiled.errors(), [""; 0]);
    match compiled.link {
        Some(Link::Edit(edit)) => edit,
        other => panic!("{other:?}"),
    }
}

/// A circuit breaker without problems.
pub(super) fn circuit_breaker(options: &str) -> CircuitBreaker {
    match problems("circuitBreaker", options).link {
        Some(Link::Around(Around::CircuitBreaker(breaker))) => (*breaker).clone(),
        other => panic!("{other:?}"),
    }
}

/// A retry link without problems.
pub(super) fn retry(options: &str) -> Retry {
    match problems("retry", options).link {
        Some(Link::Around(Around::Retry(retry))) => (*retry).clone(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn context() -> LinkContext {
    context_of("192.0.2.1")
}

pub(super) fn context_of(client: &str) -> LinkContext {
    // The clock counts from its first use, which must not come after `now`.
    clock::start();
    let client: IpAddr = client.parse().expect("an address");
    LinkContext::new(SocketAddr::new(client, 50_000), false, Instant::now())
}

/// `GET` for `a.test`.
pub(super) fn request(path: &str, fields: &[(&str, &str)]) -> RequestHead {
    RequestHead {
        method: Method::GET,
        path: Text::copy_from(path),
        query: None,
        authority: Text::from_static("a.test"),
        version: Version::HTTP_11,
        headers: headers(fields),
    }
}

pub(super) fn response(fields: &[(&str, &str)]) -> ResponseHead {
    ResponseHead { status: StatusCode::OK, headers: headers(fields) }
}

fn headers(fields: &[(&str, &str)]) -> Fields {
    let mut headers = Fields::new();
    for (name, value) in fields {
        let name = HeaderName::try_from(*name).expect("a name");
        headers.append(name, HeaderValue::try_from(*value).expect("a value"));
    }
    headers
}
