//! The fields of a message, in the order in which they came.
//!
//! Most messages have ten or twenty fields, and for so few a list that is searched from its start costs less than a
//! hash map: with `http::HeaderMap` a small request took a tenth more instructions. How many fields there are is
//! bounded where heads are read (`maxHeaderFields`), so a search is, too.

use std::ops::Index;

use http::header::{HeaderName, HeaderValue};

/// How many a head that comes in may have, whatever is configured: `http::HeaderMap`, which the codec of HTTP/2
/// takes, panics beyond 24,576, and links add some.
pub const MOST: usize = 24_000;

/// Names with their values. A name may be there more than once.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Fields {
    list: Vec<(HeaderName, HeaderValue)>,
}

/// What a field can be looked up by: its name, or the text of it in any case.
pub trait AsName {
    /// Whether this is the name.
    fn is(&self, name: &HeaderName) -> bool;
}

impl AsName for HeaderName {
    fn is(&self, name: &HeaderName) -> bool {
        self == name
    }
}

impl AsName for str {
    fn is(&self, name: &HeaderName) -> bool {
        name.as_str().eq_ignore_ascii_case(self)
    }
}

impl<N: AsName + ?Sized> AsName for &N {
    fn is(&self, name: &HeaderName) -> bool {
        N::is(self, name)
    }
}

/// What a field can be set by: its name, or a constant text that is one in lower case.
pub trait IntoName: AsName {
    /// The name.
    fn into_name(self) -> HeaderName;
}

impl IntoName for HeaderName {
    fn into_name(self) -> HeaderName {
        self
    }
}

impl IntoName for &HeaderName {
    fn into_name(self) -> HeaderName {
        self.clone()
    }
}

impl IntoName for &'static str {
    fn into_name(self) -> HeaderName {
        HeaderName::from_static(self)
    }
}

impl Fields {
    /// None.
    pub const fn new() -> Self {
        Self { list: Vec::new() }
    }

    /// None yet, with room for `fields`.
    pub fn with_capacity(fields: usize) -> Self {
        Self { list: Vec::with_capacity(fields) }
    }

    /// For how many there is room.
    pub fn capacity(&self) -> usize {
        self.list.capacity()
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Drops all, and keeps the room.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// The value of the first line with this name.
    pub fn get(&self, name: impl AsName) -> Option<&HeaderValue> {
        self.list.iter().find(|(known, _)| name.is(known)).map(|(_, value)| value)
    }

    /// The values of all lines with this name, in their order.
    pub fn get_all<'a, N: AsName + 'a>(
        &'a self,
        name: N,
    ) -> impl DoubleEndedIterator<Item = &'a HeaderValue> {
        self.list.iter().filter(move |(known, _)| name.is(known)).map(|(_, value)| value)
    }

    /// Whether there is a line with this name.
    pub fn contains_key(&self, name: impl AsName) -> bool {
        self.get(name).is_some()
    }

    /// Makes this the only line with its name, in the place of the first that was there; gives back what that said.
    pub fn insert(&mut self, name: impl IntoName, value: HeaderValue) -> Option<HeaderValue> {
        let Some(at) = self.list.iter().position(|(known, _)| name.is(known)) else {
            self.list.push((name.into_name(), value));
            return None;
        };
        let old = std::mem::replace(&mut self.list[at].1, value);
        let mut left = at + 1;
        while left < self.list.len() {
            if name.is(&self.list[left].0) {
                self.list.remove(left);
            } else {
                left += 1;
            }
        }
        Some(old)
    }

    /// Adds a line, after all others.
    pub fn append(&mut self, name: impl IntoName, value: HeaderValue) {
        self.list.push((name.into_name(), value));
    }

    /// Drops all lines with this name; gives back what the first said.
    pub fn remove(&mut self, name: impl AsName) -> Option<HeaderValue> {
        let at = self.list.iter().position(|(known, _)| name.is(known))?;
        let (_, first) = self.list.remove(at);
        self.list.retain(|(known, _)| !name.is(known));
        Some(first)
    }

    /// Keeps the lines that `keep` is for.
    pub fn retain(&mut self, mut keep: impl FnMut(&HeaderName, &HeaderValue) -> bool) {
        self.list.retain(|(name, value)| keep(name, value));
    }

    /// All lines, in their order.
    pub fn iter(&self) -> Iter<'_> {
        self.list.iter().map(|(name, value)| (name, value))
    }

    /// The names of all lines, in their order; one that is there twice comes twice.
    pub fn keys(&self) -> impl Iterator<Item = &HeaderName> {
        self.list.iter().map(|(name, _)| name)
    }

    /// The values of all lines, in their order.
    pub fn values(&self) -> impl Iterator<Item = &HeaderValue> {
        self.list.iter().map(|(_, value)| value)
    }
}

/// Lines of [`Fields`].
pub type Iter<'a> = std::iter::Map<
    std::slice::Iter<'a, (HeaderName, HeaderValue)>,
    fn(&'a (HeaderName, HeaderValue)) -> (&'a HeaderName, &'a HeaderValue),
>;

impl<'a> IntoIterator for &'a Fields {
    type Item = (&'a HeaderName, &'a HeaderValue);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl IntoIterator for Fields {
    type Item = (HeaderName, HeaderValue);
    type IntoIter = std::vec::IntoIter<(HeaderName, HeaderValue)>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

impl Extend<(HeaderName, HeaderValue)> for Fields {
    fn extend<I: IntoIterator<Item = (HeaderName, HeaderValue)>>(&mut self, lines: I) {
        self.list.extend(lines);
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for Fields {
    fn from_iter<I: IntoIterator<Item = (HeaderName, HeaderValue)>>(lines: I) -> Self {
        Self { list: lines.into_iter().collect() }
    }
}

impl<N: AsName> Index<N> for Fields {
    type Output = HeaderValue;

    fn index(&self, name: N) -> &HeaderValue {
        self.get(name).expect("a field that is there")
    }
}

impl From<http::HeaderMap> for Fields {
    fn from(map: http::HeaderMap) -> Self {
        let mut fields = Self::with_capacity(map.len());
        for (name, value) in map {
            // Further values of a name come without it.
            let name = name.or_else(|| fields.list.last().map(|(name, _)| name.clone()));
            fields.list.extend(name.map(|name| (name, value)));
        }
        fields
    }
}

impl From<Fields> for http::HeaderMap {
    fn from(fields: Fields) -> Self {
        let mut map = Self::with_capacity(fields.len());
        for (name, value) in fields {
            map.append(name, value);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_keep_their_order_and_a_name_is_found_in_any_case() {
        let mut fields = Fields::new();
        fields.append("accept", HeaderValue::from_static("a"));
        fields.append("x-own", HeaderValue::from_static("1"));
        fields.append("accept", HeaderValue::from_static("b"));
        assert_eq!(fields["X-Own"], "1");
        assert!(fields.get_all("Accept").eq(["a", "b"]));
        assert_eq!(
            fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["accept", "x-own", "accept"]
        );
        assert_eq!(
            fields.insert(http::header::ACCEPT, HeaderValue::from_static("c")).expect("was there"),
            "a"
        );
        assert_eq!(fields.len(), 2);
        assert_eq!(fields.remove("ACCEPT").expect("was there"), "c");
        assert!(!fields.contains_key("accept"));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Append(usize, u8),
        Insert(usize, u8),
        Remove(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..NAMES.len(), any::<u8>()).prop_map(|(name, value)| Step::Append(name, value)),
            (0..NAMES.len(), any::<u8>()).prop_map(|(name, value)| Step::Insert(name, value)),
            (0..NAMES.len()).prop_map(Step::Remove),
        ]
    }

    const NAMES: [&str; 5] = ["accept", "host", "x-a", "x-b", "x-forwarded-for"];

    proptest! {
        #[test]
        fn it_says_what_the_map_of_the_http_crate_says(steps in proptest::collection::vec(step(), 0..40)) {
            let (mut fields, mut map) = (Fields::new(), http::HeaderMap::new());
            for step in steps {
                match step {
                    Step::Append(name, value) => {
                        fields.append(NAMES[name], HeaderValue::from(u16::from(value)));
                        map.append(NAMES[name], HeaderValue::from(u16::from(value)));
                    }
                    Step::Insert(name, value) => {
                        let value = HeaderValue::from(u16::from(value));
                        prop_assert_eq!(fields.insert(NAMES[name], value.clone()), map.insert(NAMES[name], value));
                    }
                    Step::Remove(name) => {
                        prop_assert_eq!(fields.remove(NAMES[name]), map.remove(NAMES[name]));
                    }
                }
                for name in NAMES {
                    prop_assert!(fields.get_all(name).eq(map.get_all(name)));
                    prop_assert_eq!(fields.get(name), map.get(name));
                }
            }
            prop_assert_eq!(&http::HeaderMap::from(fields.clone()), &map);
            prop_assert_eq!(fields.len(), Fields::from(map).len());
        }
    }
}
