//! A node to a type: serde's `Deserializer` over the tree.
//!
//! Follows Traefik where it reads YAML: keys in any case, digits in quotes for a number, anything bare for
//! text. Reports every mistake at its place instead of handing it up, and reads on after an unknown key.
//! `null` for a key of a block means that the key is absent.
//! Never: files, what values mean.

use std::cell::RefCell;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::{
    self, Deserialize, DeserializeSeed, EnumAccess, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};

use super::tree::{Entry, Mark, Node, Scalar, Style, Value, excerpt};
use super::unsupported::{self, Verdict};
use crate::common::problem::{ConfigPath, Problem, Problems, nearest};

/// Reads `node` as a `T`. `None` when it is none; there is an error in `problems` then.
///
/// `path` is the node's own, `own` the mark of its key. There may be errors (an unknown key) beside a value.
pub fn read<'de, T: Deserialize<'de>>(
    node: &'de Node,
    path: &ConfigPath,
    own: Mark,
    file: &Arc<PathBuf>,
    problems: &mut Problems,
) -> Option<T> {
    let context = Context { file, problems: RefCell::new(std::mem::take(problems)) };
    let at = At { parent: None, step: Here::Base(path), own };
    // The error was reported where it arose.
    let value = T::deserialize(Reader { node, at: &at, context: &context }).ok();
    *problems = context.problems.into_inner();
    value
}

/// Reports the keys of a block that is read key by key; `known` are those that exist, `elsewhere` those that
/// stand in the main file only.
///
/// Gives the entries under their usual spelling, without unknown ones and without null values.
pub fn entries<'n>(
    node: &'n Node,
    known: &[&'static str],
    elsewhere: &[&'static str],
    path: &ConfigPath,
    own: Mark,
    file: &Arc<PathBuf>,
    problems: &mut Problems,
) -> Vec<(&'static str, &'n Entry)> {
    let context = Context { file, problems: RefCell::new(std::mem::take(problems)) };
    let at = At { parent: None, step: Here::Base(path), own };
    let reader = Reader { node, at: &at, context: &context };
    let entries = match &node.value {
        Value::Map(entries) => {
            let here = entries.iter().filter(|entry| !reader.misplaced(entry, elsewhere));
            reader.fields(here, known)
        }
        Value::Scalar(_) if node.is_null() => Vec::new(),
        Value::Scalar(_) | Value::List(_) => {
            reader.expected("a map of keys");
            Vec::new()
        }
    };
    *problems = context.problems.into_inner();
    entries
}

struct Context<'c> {
    file: &'c Arc<PathBuf>,
    problems: RefCell<Problems>,
}

/// The way to a node; made into a [`ConfigPath`] only when there is something to report.
struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: Here<'a>,
    /// The mark of the node's key, or of the item itself in a list.
    own: Mark,
}

enum Here<'a> {
    Base(&'a ConfigPath),
    Key(&'a str),
    Index(usize),
}

impl At<'_> {
    fn path(&self) -> ConfigPath {
        let above = self.parent.map(At::path).unwrap_or_default();
        match self.step {
            Here::Base(path) => path.clone(),
            Here::Key(key) => above.key(key),
            Here::Index(index) => above.index(index),
        }
    }
}

/// What serde hands up. Text that it makes itself becomes a problem at the innermost node.
#[derive(Debug)]
enum Error {
    /// There is a problem about it already.
    Reported,
    /// The place is not known yet.
    Text(String),
    /// A block has no value for a required key.
    Missing(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reported => f.write_str("reported"),
            Self::Text(text) => f.write_str(text),
            Self::Missing(field) => write!(f, "\"{field}\" is missing"),
        }
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Text(message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::Text(format!("expected {expected}, found {}", describe(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::Text(format!("expected {expected}, found {}", describe(found)))
    }
}

fn describe(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Unsigned(value) => value.to_string(),
        Unexpected::Signed(value) => value.to_string(),
        Unexpected::Float(value) => value.to_string(),
        Unexpected::Str(text) => format!("{:?}", excerpt(text)),
        Unexpected::Unit => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a map".to_owned(),
        other => other.to_string(),
    }
}

#[derive(Clone, Copy)]
struct Reader<'de, 'a> {
    node: &'de Node,
    at: &'a At<'a>,
    context: &'a Context<'a>,
}

impl<'de, 'a> Reader<'de, 'a> {
    fn report(&self, message: impl Into<String>, hint: Option<&str>) -> Error {
        let mut problem = Problem::error(&self.at.path(), message);
        problem.hint = hint.map(str::to_owned);
        self.push(problem, self.mark());
        Error::Reported
    }

    fn push(&self, mut problem: Problem, mark: Mark) {
        problem.place = Some(mark.place(self.context.file));
        self.context.problems.borrow_mut().push(problem);
    }

    /// A scalar's own mark; of anything else the key's.
    fn mark(&self) -> Mark {
        match &self.node.value {
            Value::Scalar(scalar) if !scalar.is_null() => self.node.mark,
            Value::Scalar(_) | Value::List(_) | Value::Map(_) => self.at.own,
        }
    }

    /// Makes a problem of what a visitor says about this node, unless there is one already.
    fn placed<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| match error {
            Error::Reported => Error::Reported,
            Error::Text(text) => match &self.node.value {
                // The visitor's words may quote the secret.
                Value::Scalar(Scalar { written: Some(written), .. }) => {
                    self.report(format!("what {:?} stands for is not valid here", excerpt(written)), None)
                }
                Value::Scalar(_) | Value::List(_) | Value::Map(_) => self.report(text, None),
            },
            Error::Missing(field) => {
                let path = self.at.path().key(field);
                self.push(Problem::error(&path, format!("\"{field}\" is missing")), self.at.own);
                Error::Reported
            }
        })
    }

    fn expected(&self, what: &str) -> Error {
        let hint = match (&self.node.value, what) {
            (Value::Scalar(scalar), "a list") if !scalar.is_null() && scalar.written.is_none() => {
                Some(format!("write [{}]", excerpt(&scalar.text)))
            }
            (Value::Scalar(scalar), "text") if scalar.is_null() => {
                Some("write \"\" for an empty text".to_owned())
            }
            (Value::Scalar(scalar), "true or false")
                if matches!(&*scalar.text.to_ascii_lowercase(), "yes" | "on" | "y") =>
            {
                Some("write true".to_owned())
            }
            (Value::Scalar(scalar), "true or false")
                if matches!(&*scalar.text.to_ascii_lowercase(), "no" | "off" | "n") =>
            {
                Some("write false".to_owned())
            }
            _ => None,
        };
        self.report(format!("expected {what}, found {}", self.node.kind()), hint.as_deref())
    }

    fn text(&self) -> Result<&'de str, Error> {
        match &self.node.value {
            Value::Scalar(scalar) if !scalar.is_null() => Ok(&scalar.text),
            Value::Scalar(_) | Value::List(_) | Value::Map(_) => Err(self.expected("text")),
        }
    }

    /// A whole number, bare or in quotes, within the bounds of its type.
    fn integer(&self, min: i128, max: i128) -> Result<i128, Error> {
        let Value::Scalar(scalar) = &self.node.value else { return Err(self.expected("a whole number")) };
        let text = scalar.text.trim();
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(self.expected("a whole number"));
        }
        if digits.len() > 1 && digits.starts_with('0') {
            return Err(self.report(
                format!("expected a whole number, found {}", self.node.kind()),
                Some("write it without the leading zero"),
            ));
        }
        match text.parse::<i128>() {
            Ok(value) if (min..=max).contains(&value) => Ok(value),
            Ok(_) | Err(_) => Err(self.report(
                format!("expected a whole number from {min} to {max}, found {}", excerpt(scalar.shown())),
                None,
            )),
        }
    }

    /// The entries of a block under the usual spelling of their keys; reports the rest.
    fn fields(
        &self,
        entries: impl IntoIterator<Item = &'de Entry>,
        known: &[&'static str],
    ) -> Vec<(&'static str, &'de Entry)> {
        let mut fields: Vec<(&'static str, &'de Entry)> = Vec::new();
        for entry in entries {
            let usual = known
                .iter()
                .find(|name| **name == &*entry.key)
                .or_else(|| known.iter().find(|name| name.eq_ignore_ascii_case(&entry.key)));
            let Some(usual) = usual else {
                self.unknown(entry, known);
                continue;
            };
            if let Some((_, first)) = fields.iter().find(|(name, _)| name == usual) {
                let message =
                    format!("key {usual:?} is given twice; the first is in line {}", first.mark.line);
                self.push(Problem::error(&self.at.path().key(usual), message), entry.mark);
                continue;
            }
            if **usual != *entry.key {
                let message = format!("the usual spelling of {:?} is {usual:?}", excerpt(&entry.key));
                self.push(Problem::warning(&self.at.path().key(usual), message), entry.mark);
            }
            fields.push((usual, entry));
        }
        fields.retain(|(_, entry)| !entry.value.is_null());
        fields
    }

    /// Reports a key that stands in the main file only, if this is one.
    fn misplaced(&self, entry: &Entry, elsewhere: &[&'static str]) -> bool {
        let Some(usual) = elsewhere.iter().find(|name| name.eq_ignore_ascii_case(&entry.key)) else {
            return false;
        };
        let problem = Problem::error(&self.at.path().key(usual), format!("{usual} belongs in the main file"))
            .hint("a provider file has dynamic keys only: http, tcp, udp, tls");
        self.push(problem, entry.mark);
        true
    }

    /// Reports a key that the type does not have.
    fn unknown(&self, entry: &Entry, known: &[&'static str]) {
        let above = self.at.path();
        let path = above.key(&entry.key);
        let written = match &entry.value.value {
            Value::Scalar(scalar) if scalar.is_null() => Some("null"),
            Value::Scalar(scalar) => Some(scalar.shown()),
            Value::Map(entries) if entries.is_empty() => Some("{}"),
            Value::Map(_) | Value::List(_) => None,
        };
        match unsupported::key(&path, written) {
            Verdict::Harmless => {}
            Verdict::Unsupported(problem) => self.push(*problem, entry.mark),
            Verdict::Unknown => {
                let candidates = known.iter().copied().chain(unsupported::keys_under(&above));
                let hint = suggestion(&entry.key, candidates, known);
                let mut problem = Problem::error(&path, format!("unknown key {:?}", excerpt(&entry.key)));
                problem.hint = hint;
                self.push(problem, entry.mark);
            }
        }
    }

    fn child<'b>(&'b self, node: &'de Node, at: &'b At<'b>) -> Reader<'de, 'b> {
        Reader { node, at, context: self.context }
    }
}

/// "did you mean", or all that exist where they are few.
fn suggestion<'k>(
    word: &str,
    candidates: impl IntoIterator<Item = &'k str>,
    known: &[&'static str],
) -> Option<String> {
    const FEW: usize = 12;
    match nearest(word, candidates) {
        Some(near) => Some(format!("did you mean {near:?}?")),
        None if (1..=FEW).contains(&known.len()) => Some(format!("known here: {}", known.join(", "))),
        None => None,
    }
}

macro_rules! integers {
    ($($method:ident $type:ident $visit:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let value = self.integer($type::MIN.into(), $type::MAX.into())?;
            match $type::try_from(value) {
                Ok(value) => self.placed(visitor.$visit(value)),
                Err(_) => Err(self.expected("a whole number")),
            }
        })*
    };
}

impl<'de> de::Deserializer<'de> for Reader<'de, '_> {
    type Error = Error;

    integers! {
        deserialize_i8 i8 visit_i8
        deserialize_i16 i16 visit_i16
        deserialize_i32 i32 visit_i32
        deserialize_i64 i64 visit_i64
        deserialize_u8 u8 visit_u8
        deserialize_u16 u16 visit_u16
        deserialize_u32 u32 visit_u32
        deserialize_u64 u64 visit_u64
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let scalar = match &self.node.value {
            Value::List(_) => return self.deserialize_seq(visitor),
            Value::Map(_) => return self.deserialize_map(visitor),
            Value::Scalar(scalar) => scalar,
        };
        let text = &*scalar.text;
        let result = match scalar.style {
            Style::Quoted => visitor.visit_borrowed_str(text),
            Style::Plain if scalar.is_null() => visitor.visit_unit(),
            Style::Plain => match text {
                "true" | "True" | "TRUE" => visitor.visit_bool(true),
                "false" | "False" | "FALSE" => visitor.visit_bool(false),
                _ => match (text.parse::<u64>(), text.parse::<i64>()) {
                    (Ok(value), _) => visitor.visit_u64(value),
                    (Err(_), Ok(value)) => visitor.visit_i64(value),
                    (Err(_), Err(_))
                        if text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) =>
                    {
                        match text.parse::<f64>() {
                            Ok(value) => visitor.visit_f64(value),
                            Err(_) => visitor.visit_borrowed_str(text),
                        }
                    }
                    (Err(_), Err(_)) => visitor.visit_borrowed_str(text),
                },
            },
        };
        self.placed(result)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let text = match &self.node.value {
            Value::Scalar(scalar) => &*scalar.text,
            Value::List(_) | Value::Map(_) => "",
        };
        match text {
            "true" | "True" | "TRUE" => self.placed(visitor.visit_bool(true)),
            "false" | "False" | "FALSE" => self.placed(visitor.visit_bool(false)),
            _ => Err(self.expected("true or false")),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Value::Scalar(scalar) = &self.node.value else { return Err(self.expected("a number")) };
        match scalar.text.trim().parse::<f64>() {
            Ok(value) if value.is_finite() => self.placed(visitor.visit_f64(value)),
            Ok(_) | Err(_) => Err(self.expected("a number")),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let text = self.text()?;
        self.placed(visitor.visit_borrowed_str(text))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let text = self.text()?;
        self.placed(visitor.visit_borrowed_bytes(text.as_bytes()))
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.node.is_null() {
            return self.placed(visitor.visit_none());
        }
        self.placed(visitor.visit_some(self))
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.placed(visitor.visit_unit())
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.placed(visitor.visit_unit())
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.placed(visitor.visit_newtype_struct(self))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::List(items) => {
                self.placed(visitor.visit_seq(Items { reader: self, items: items.iter().enumerate() }))
            }
            Value::Scalar(_) | Value::Map(_) => Err(self.expected("a list")),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let fields: Vec<(&'de str, &'de Entry)> = match &self.node.value {
            Value::Map(entries) => entries.iter().map(|entry| (&*entry.key, entry)).collect(),
            Value::Scalar(_) if self.node.is_null() => Vec::new(),
            Value::Scalar(_) | Value::List(_) => return Err(self.expected("a map of keys")),
        };
        self.placed(visitor.visit_map(Fields { reader: self, fields: fields.into_iter(), value: None }))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let fields = match &self.node.value {
            Value::Map(entries) => self.fields(entries, fields),
            Value::Scalar(_) if self.node.is_null() => Vec::new(),
            Value::Scalar(_) | Value::List(_) => return Err(self.expected("a map of keys")),
        };
        self.placed(visitor.visit_map(Fields { reader: self, fields: fields.into_iter(), value: None }))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let named = |word: &str| variants.iter().copied().find(|variant| variant.eq_ignore_ascii_case(word));
        let entries = match &self.node.value {
            Value::Scalar(scalar) if !scalar.is_null() => {
                let Some(variant) = named(&scalar.text) else {
                    return Err(self.unknown_value(scalar, variants));
                };
                return self.placed(visitor.visit_enum(Variant { reader: self, variant, content: None }));
            }
            Value::Map(entries) => entries,
            Value::Scalar(_) | Value::List(_) => return Err(self.expected(&one_of(variants))),
        };
        let before = self.context.problems.borrow().len();
        let kinds: Vec<_> = entries
            .iter()
            .filter_map(|entry| match named(&entry.key) {
                Some(variant) => Some((variant, entry)),
                None => {
                    self.unknown(entry, variants);
                    None
                }
            })
            .collect();
        match kinds[..] {
            _ if self.context.problems.borrow().errors_since(before) => Err(Error::Reported),
            [] => Err(self.expected(&one_of(variants))),
            [(variant, entry)] => {
                if variant != &*entry.key {
                    let message = format!("the usual spelling of {:?} is {variant:?}", excerpt(&entry.key));
                    self.push(Problem::warning(&self.at.path().key(variant), message), entry.mark);
                }
                self.placed(visitor.visit_enum(Variant { reader: self, variant, content: Some(entry) }))
            }
            [(first, _), (second, entry), ..] => {
                let message = format!("{first} and {second} are two kinds; only one may stand here");
                let problem = Problem::error(&self.at.path().key(second), message)
                    .hint("give each a name of its own and use both");
                self.push(problem, entry.mark);
                Err(Error::Reported)
            }
        }
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }
}

impl Reader<'_, '_> {
    fn unknown_value(&self, scalar: &Scalar, variants: &[&'static str]) -> Error {
        if scalar.written.is_none()
            && let Some(problem) = unsupported::value(&self.at.path(), &scalar.text)
        {
            self.push(problem, self.node.mark);
            return Error::Reported;
        }
        let message = format!("expected {}, found {}", one_of(variants), self.node.kind());
        let near = match scalar.written {
            None => nearest(&scalar.text, variants.iter().copied()),
            Some(_) => None,
        };
        self.report(message, near.map(|near| format!("did you mean {near:?}?")).as_deref())
    }
}

fn one_of(variants: &[&str]) -> String {
    match variants {
        [] => "nothing".to_owned(),
        [only] => (*only).to_owned(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

struct Items<'de, 'a> {
    reader: Reader<'de, 'a>,
    items: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((index, item)) = self.items.next() else { return Ok(None) };
        let at = At { parent: Some(self.reader.at), step: Here::Index(index), own: item.mark };
        let reader = self.reader.child(item, &at);
        reader.placed(seed.deserialize(reader)).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Fields<'de, 'a, 'k> {
    reader: Reader<'de, 'a>,
    fields: std::vec::IntoIter<(&'k str, &'de Entry)>,
    value: Option<(&'k str, &'de Entry)>,
}

impl<'de> MapAccess<'de> for Fields<'de, '_, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.value = self.fields.next();
        let Some((key, entry)) = self.value else { return Ok(None) };
        match seed.deserialize(KeyReader { key }) {
            Ok(key) => Ok(Some(key)),
            Err(error) => {
                let message = format!("bad key {:?}: {error}", excerpt(&entry.key));
                self.reader.push(Problem::error(&self.reader.at.path().key(key), message), entry.mark);
                Err(Error::Reported)
            }
        }
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let Some((key, entry)) = self.value.take() else { return Err(Error::Text("no key".to_owned())) };
        let at = At { parent: Some(self.reader.at), step: Here::Key(key), own: entry.mark };
        let reader = self.reader.child(&entry.value, &at);
        reader.placed(seed.deserialize(reader))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.fields.len())
    }
}

/// A key of a map: text, or a number where the map is keyed by numbers.
struct KeyReader<'k> {
    key: &'k str,
}

macro_rules! number_keys {
    ($($method:ident $type:ident $visit:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.key.parse::<$type>() {
                Ok(number) => visitor.$visit(number),
                Err(_) => Err(Error::Text("expected a whole number".to_owned())),
            }
        })*
    };
}

impl<'de> de::Deserializer<'de> for KeyReader<'_> {
    type Error = Error;

    number_keys! {
        deserialize_i64 i64 visit_i64
        deserialize_u16 u16 visit_u16
        deserialize_u32 u32 visit_u32
        deserialize_u64 u64 visit_u64
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(self.key)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let variant: de::value::StrDeserializer<'_, Error> = self.key.into_deserializer();
        variant.deserialize_enum(name, variants, visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i128 u8 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Variant<'de, 'a> {
    reader: Reader<'de, 'a>,
    variant: &'static str,
    /// What stands under the variant's name; absent when the name stands alone.
    content: Option<&'de Entry>,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'de, 'a> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name: de::value::StrDeserializer<'_, Error> = self.variant.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'de, '_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        match self.content {
            None => Ok(()),
            Some(entry) if entry.value.is_null() => Ok(()),
            Some(_) => Err(Error::Text(format!("{} takes no keys", self.variant))),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        let Some(entry) = self.content else { return Err(self.reader.expected("a map of keys")) };
        let at = At { parent: Some(self.reader.at), step: Here::Key(self.variant), own: entry.mark };
        let reader = self.reader.child(&entry.value, &at);
        reader.placed(seed.deserialize(reader))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(self.reader.expected("a map of keys"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Some(entry) = self.content else { return Err(self.reader.expected("a map of keys")) };
        let at = At { parent: Some(self.reader.at), step: Here::Key(self.variant), own: entry.mark };
        let reader = self.reader.child(&entry.value, &at);
        de::Deserializer::deserialize_struct(reader, self.variant, fields, visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::common::units::HumanDuration;
    use crate::config::router::RouterConfig;
    use crate::config::service::{HealthCheckConfig, ServiceConfig, Strategy};
    use crate::config::tree;
    use crate::middleware::MiddlewareConfig;

    fn read_at<T: for<'de> Deserialize<'de>>(path: &[&str], text: &str) -> (Option<T>, Vec<String>) {
        let file = Arc::new("t.yaml".into());
        let mut problems = Problems::new();
        let node = tree::parse(&file, text.as_bytes(), &mut problems).expect("is YAML");
        let own = Mark { line: 0, column: 0, width: 1 };
        let value = read(&node, &ConfigPath::of(path), own, &file, &mut problems);
        let lines = problems.iter().map(|problem| {
            let place = problem.place.as_ref().expect("has a place");
            let hint = problem.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
            format!("{}:{} [{}] {}{hint}", place.line, place.column, problem.path, problem.message)
        });
        (value, lines.collect())
    }

    fn problems<T: for<'de> Deserialize<'de>>(text: &str) -> Vec<String> {
        read_at::<T>(&["x"], text).1
    }

    fn good<T: for<'de> Deserialize<'de>>(text: &str) -> T {
        let (value, problems) = read_at(&["x"], text);
        assert_eq!(problems, Vec::<String>::new());
        value.expect("was read")
    }

    #[derive(Debug, Default, serde::Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase", default)]
    struct Everything {
        small: u8,
        signed: i64,
        flag: bool,
        share: f64,
        some_text: String,
        texts: Vec<String>,
        time: HumanDuration,
        maybe: Option<u16>,
        named: BTreeMap<String, String>,
        codes: BTreeMap<u16, String>,
        inner: Option<Box<Everything>>,
    }

    #[test]
    fn numbers_and_bools_are_text_where_text_is_wanted_just_as_written() {
        let read: Everything = good("someText: 1.10\ntexts: [true, 007, ~x, 1e3]\nnamed: {a: 5, 7: no}\n");
        assert_eq!(read.some_text, "1.10");
        assert_eq!(read.texts, ["true", "007", "~x", "1e3"]);
        assert_eq!(read.named.get("7").map(String::as_str), Some("no"));
    }

    #[test]
    fn digits_in_quotes_are_a_number_where_a_number_is_wanted() {
        let read: Everything =
            good("small: '7'\nsigned: -5\nshare: \"0.5\"\ntime: '90'\nflag: 'true'\ncodes: {404: x}\n");
        assert_eq!((read.small, read.signed, read.share, read.flag), (7, -5, 0.5, true));
        assert_eq!(read.time, HumanDuration::secs(90));
        assert_eq!(read.codes.get(&404).map(String::as_str), Some("x"));
    }

    #[test]
    fn null_is_absent() {
        let read: Everything = good("small:\nflag: ~\nsomeText: null\ntexts:\nnamed:\ninner:\nmaybe: ~\n");
        assert_eq!(read, Everything::default());
    }

    #[test]
    fn an_empty_block_is_present() {
        let read: Everything = good("inner: {}\n");
        assert_eq!(read.inner, Some(Box::default()));
    }

    #[test]
    fn wrong_types_say_what_was_expected_and_what_was_found() {
        let cases = [
            ("small: abc", "1:8 [x.small] expected a whole number, found \"abc\""),
            ("small: 1.5", "1:8 [x.small] expected a whole number, found \"1.5\""),
            ("small: 300", "1:8 [x.small] expected a whole number from 0 to 255, found 300"),
            ("small: -1", "1:8 [x.small] expected a whole number from 0 to 255, found -1"),
            ("small: 0x10", "1:8 [x.small] expected a whole number, found \"0x10\""),
            (
                "small: 010",
                "1:8 [x.small] expected a whole number, found \"010\" (write it without the leading zero)",
            ),
            ("small: [1]", "1:1 [x.small] expected a whole number, found a list"),
            (
                "signed: 99999999999999999999",
                "1:9 [x.signed] expected a whole number from -9223372036854775808 to 9223372036854775807, found 99999999999999999999",
            ),
            ("flag: yes", "1:7 [x.flag] expected true or false, found \"yes\" (write true)"),
            ("flag: off", "1:7 [x.flag] expected true or false, found \"off\" (write false)"),
            ("flag: 1", "1:7 [x.flag] expected true or false, found \"1\""),
            ("share: nan", "1:8 [x.share] expected a number, found \"nan\""),
            ("someText: {a: b}", "1:1 [x.someText] expected text, found a map"),
            ("texts: web", "1:8 [x.texts] expected a list, found \"web\" (write [web])"),
            (
                "texts: [a, ~]",
                "1:12 [x.texts[1]] expected text, found nothing (write \"\" for an empty text)",
            ),
            ("texts: [a, [b]]", "1:12 [x.texts[1]] expected text, found a list"),
            ("named: [a]", "1:1 [x.named] expected a map of keys, found a list"),
            ("named: {a: {b: c}}", "1:9 [x.named.a] expected text, found a map"),
            ("codes: {abc: x}", "1:9 [x.codes.abc] bad key \"abc\": expected a whole number"),
            ("inner: text", "1:8 [x.inner] expected a map of keys, found \"text\""),
            ("time: -5", "1:7 [x.time] a duration must not be negative"),
            (
                "time: 1.5",
                "1:7 [x.time] expected a duration such as 250ms, 1m30s, or whole seconds, found 1.5",
            ),
            ("maybe: x", "1:8 [x.maybe] expected a whole number, found \"x\""),
        ];
        for (text, message) in cases {
            assert_eq!(problems::<Everything>(text), [message], "{text}");
        }
        let duration = problems::<Everything>("time: 5 minutes");
        assert!(duration[0].starts_with("1:7 [x.time] bad duration \"5 minutes\""), "{duration:?}");
    }

    #[test]
    fn keys_match_in_any_case_with_a_word_about_the_usual_spelling() {
        let (read, problems) = read_at::<Everything>(&["x"], "SMALL: 5\nsometext: a\n");
        assert_eq!(read.map(|read| (read.small, read.some_text)), Some((5, "a".to_owned())));
        assert_eq!(
            problems,
            [
                "1:1 [x.small] the usual spelling of \"SMALL\" is \"small\"",
                "2:1 [x.someText] the usual spelling of \"sometext\" is \"someText\"",
            ]
        );
    }

    #[test]
    fn one_key_in_two_spellings_is_given_twice() {
        assert_eq!(
            problems::<Everything>("small: 5\nSmall: 6\n"),
            ["2:1 [x.small] key \"small\" is given twice; the first is in line 1"]
        );
    }

    #[test]
    fn an_unknown_key_is_reported_with_a_suggestion_and_reading_goes_on() {
        let (read, problems) = read_at::<RouterConfig>(
            &["http", "routers", "api"],
            "rule: x\nservcie: a\nservice: b\npriorty: 5\nwhatever: 1\n",
        );
        assert_eq!(read.map(|router| router.service), Some("b".to_owned()));
        assert_eq!(
            problems,
            [
                "2:1 [http.routers.api.servcie] unknown key \"servcie\" (did you mean \"service\"?)",
                "4:1 [http.routers.api.priorty] unknown key \"priorty\" (did you mean \"priority\"?)",
                "5:1 [http.routers.api.whatever] unknown key \"whatever\" (known here: rule, service, entryPoints, middlewares, priority, ruleSyntax, pathMatching, tls, observability, timeouts, importance)",
            ]
        );
    }

    #[test]
    fn a_missing_key_is_named() {
        let (read, problems) = read_at::<RouterConfig>(&["http", "routers", "api"], "rule: x\n");
        assert_eq!(read, None);
        assert_eq!(problems, ["0:0 [http.routers.api.service] \"service\" is missing"]);
        let (_, problems) = read_at::<ServiceConfig>(
            &["http", "services", "api"],
            "loadBalancer:\n  servers:\n    - weight: 1\n",
        );
        assert_eq!(problems, ["3:7 [http.services.api.loadBalancer.servers[0].url] \"url\" is missing"]);
    }

    #[test]
    fn what_is_not_supported_is_called_by_its_name() {
        let service = ["http", "services", "api"];
        let (_, found) =
            read_at::<ServiceConfig>(&service, "Middlewares: [a]\nloadBalancer:\n  servers: []\n");
        assert_eq!(
            found,
            [
                "1:1 [http.services.api.Middlewares] middlewares is not supported yet (name them in the routers that use the service)",
            ]
        );
        let router = ["http", "routers", "api"];
        let (_, found) = read_at::<RouterConfig>(&router, "{rule: x, service: a, ruleSyntax: v2}\n");
        assert_eq!(
            found,
            [
                "1:35 [http.routers.api.ruleSyntax] ruleSyntax v2 is not supported yet (write the rule in v3's language)"
            ]
        );
    }

    #[test]
    fn words_of_a_list_match_in_any_case_and_others_are_named() {
        let read: ServiceConfig = good("loadBalancer: {strategy: P2C}\n");
        assert_eq!(read.load_balancer.map(|balancer| balancer.strategy), Some(Strategy::P2c));
        assert_eq!(
            problems::<ServiceConfig>("loadBalancer: {strategy: wr}\n"),
            [
                "1:26 [x.loadBalancer.strategy] expected wrr, p2c, leastrequests, leasttime, hrw or hash, found \"wr\" (did you mean \"wrr\"?)"
            ]
        );
    }

    #[test]
    fn a_middleware_is_of_exactly_one_kind() {
        let path = ["http", "middlewares", "m"];
        let read = |text: &str| read_at::<MiddlewareConfig>(&path, text);
        assert!(matches!(read("addPrefix: {prefix: /a}").0, Some(MiddlewareConfig::AddPrefix(_))));
        assert_eq!(
            read("addprefix: {prefix: /a}").1,
            ["1:1 [http.middlewares.m.addPrefix] the usual spelling of \"addprefix\" is \"addPrefix\""]
        );
        assert_eq!(
            read("addPrefix: {prefix: /a}\nrateLimit: {}").1,
            [
                "2:1 [http.middlewares.m.rateLimit] addPrefix and rateLimit are two kinds; only one may stand here (give each a name of its own and use both)"
            ]
        );
        assert_eq!(
            read("ratelimt: {}").1,
            ["1:1 [http.middlewares.m.ratelimt] unknown key \"ratelimt\" (did you mean \"rateLimit\"?)"]
        );
        assert!(read("{}").1[0].contains("found a map"), "{:?}", read("{}").1);
        assert!(read("rateLimit:").0.is_some(), "{:?}", read("rateLimit:").1);
    }

    #[test]
    fn a_problem_deep_in_a_list_has_the_exact_place_and_path() {
        assert_eq!(
            problems::<ServiceConfig>(
                "loadBalancer:\n  servers:\n    - url: http://a\n    - url: http://b\n      weight: heavy\n"
            ),
            ["5:15 [x.loadBalancer.servers[1].weight] expected a whole number, found \"heavy\""]
        );
    }

    #[test]
    fn a_health_check_has_traefiks_defaults() {
        let read: HealthCheckConfig = good("path: /up\n");
        assert_eq!(read.interval, HumanDuration::secs(30));
        assert_eq!(read.timeout, HumanDuration::secs(5));
        assert!(read.follow_redirects);
        assert_eq!(read.method, "GET");
    }
}
