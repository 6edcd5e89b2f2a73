//! The script that Redis runs, and what goes into it and comes out.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use redis::{Cmd, Value};
use smallvec::SmallVec;

use super::super::decision::Limit;
use super::terms::Terms;

/// The longest pause, 35 years in microseconds: with the time it is a number that Redis keeps exactly.
const MOST_PAUSED: u64 = 1 << 50;

/// The script as Redis gets it.
pub const CODE: &str = include_str!("buckets.lua");

/// A key as Redis has it: half of a SHA-256, the same in every replica.
pub type Digest = [u8; 16];

/// What a key is to Redis: nobody can find two keys with the same.
pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    let mut half = Digest::default();
    for (to, from) in half.iter_mut().zip(digest(&SHA256, bytes).as_ref()) {
        *to = *from;
    }
    half
}

/// A limit as Redis sees it.
#[derive(Debug, Eq, PartialEq)]
pub struct Shape {
    /// What its keys begin with.
    stem: Box<str>,
    windows: Box<[(Arc<str>, Terms)]>,
}

impl Shape {
    /// The keys of a limit of this name begin with `prefix`. Braces would change which node of a cluster a key
    /// belongs to, so none of the operator's are kept.
    pub fn new(prefix: &str, name: &str, limit: &Limit) -> Self {
        let stem = format!("{prefix}:{name}").replace('{', "(").replace('}', ")");
        let windows = limit
            .windows()
            .iter()
            .map(|window| (Arc::clone(&window.name), Terms::of(&window.quota)))
            .collect();
        Self { stem: stem.into(), windows }
    }

    /// The terms of its windows.
    pub fn terms(&self) -> impl Iterator<Item = &Terms> {
        self.windows.iter().map(|(_, terms)| terms)
    }

    /// The name of a bucket: all of a client's buckets have the same hash tag, so that one node has them.
    fn key(&self, digest: &Digest, window: &str) -> String {
        let digest = u128::from_be_bytes(*digest);
        let window = window.replace('{', "(").replace('}', ")");
        format!("{}:{{{digest:032x}}}:{window}", self.stem)
    }
}

/// One request's question.
#[derive(Clone, Debug)]
pub struct Question {
    /// Of which limit.
    pub shape: Arc<Shape>,
    /// Of which client.
    pub digest: Digest,
    /// Tokens to be taken from each of its buckets.
    pub cost: u64,
    /// How they are taken.
    pub kind: Kind,
    /// For so many microseconds the buckets stay empty before that; 0: they do not. Never ends a longer such
    /// time.
    pub pause: u64,
}

/// What a question is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// They are taken if all buckets have them.
    Ask,
    /// They have been given away already.
    Owed,
    /// They were taken, as an answer said, and are given back, less what time has brought back since.
    Back {
        /// Redis's time of that answer, in microseconds.
        since: u64,
        /// What it said was spent.
        spent: Spent,
    },
}

/// Units spent in Redis's numbers, one a window.
pub type Spent = SmallVec<[u64; 1]>;

/// One request's answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// Whether the tokens were taken.
    pub taken: bool,
    /// Units spent thereafter.
    pub spent: Spent,
}

/// How a script is named in a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum By<'a> {
    /// By its hash, once the server knows it.
    Hash(&'a str),
    /// By its text, which the server then keeps.
    Code(&'a str),
}

/// The call that asks all these questions.
pub fn call<'a>(by: By<'_>, questions: impl Iterator<Item = &'a Question> + Clone) -> Cmd {
    let mut cmd = match by {
        By::Hash(hash) => redis::cmd("EVALSHA").arg(hash).to_owned(),
        By::Code(code) => redis::cmd("EVAL").arg(code).to_owned(),
    };
    let keys: usize = questions.clone().map(|question| question.shape.windows.len()).sum();
    cmd.arg(keys);
    for question in questions.clone() {
        for (window, _) in &question.shape.windows {
            cmd.arg(question.shape.key(&question.digest, window));
        }
    }
    for question in questions {
        let (kind, back) = match (&question.kind, question.pause) {
            (Kind::Ask, 0) => (0, None),
            (Kind::Owed, 0) => (1, None),
            (Kind::Back { since, spent }, _) => (2, Some((since, spent))),
            (Kind::Ask, _) => (3, None),
            (Kind::Owed, _) => (4, None),
        };
        cmd.arg(question.shape.windows.len()).arg(kind);
        for (index, (_, terms)) in question.shape.windows.iter().enumerate() {
            cmd.arg(terms.per_micro).arg(terms.token).arg(terms.size).arg(terms.slack);
            cmd.arg(terms.cost(question.cost));
            if let Some((since, spent)) = back {
                cmd.arg(since).arg(spent.get(index).copied().unwrap_or(0));
            } else if question.pause > 0 {
                cmd.arg(question.pause.min(MOST_PAUSED));
            }
        }
    }
    cmd
}

/// Reads what the script answered; `None` if it is not that. The number is Redis's time, in microseconds.
pub fn read<'a>(value: &Value, questions: impl Iterator<Item = &'a Question>) -> Option<(u64, Vec<Answer>)> {
    let Value::Array(values) = value else { return None };
    let mut numbers = values.iter().map(|value| match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    });
    let time = numbers.next()??;
    let mut answers = Vec::new();
    for question in questions {
        let taken = match numbers.next()?? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let spent = (0..question.shape.windows.len()).map(|_| numbers.next()?).collect::<Option<Spent>>()?;
        answers.push(Answer { taken, spent });
    }
    numbers.next().is_none().then_some((time, answers))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use super::*;
    use crate::limit::{Quota, Window};

    fn shape(windows: &[&str]) -> Arc<Shape> {
        let quota = Quota::new(NonZeroU64::MIN, Duration::from_secs(1), NonZeroU64::MIN);
        let windows = windows.iter().map(|name| Window { name: (*name).into(), quota });
        Arc::new(Shape::new("p", "m{x}", &Limit::new(windows)))
    }

    fn question(windows: &[&str]) -> Question {
        Question { shape: shape(windows), digest: [0xab; 16], cost: 1, kind: Kind::Ask, pause: 0 }
    }

    #[test]
    fn the_buckets_of_a_client_have_one_hash_tag_whatever_the_names() {
        let digest = "ab".repeat(16);
        assert_eq!(shape(&["a"]).key(&[0xab; 16], "a"), format!("p:m(x):{{{digest}}}:a"));
        assert_eq!(shape(&["a", "b}"]).key(&[0xab; 16], "b}"), format!("p:m(x):{{{digest}}}:b)"));
    }

    #[test]
    fn only_an_answer_to_these_questions_is_one() {
        let questions = [question(&["a"]), question(&["a", "b"])];
        let read = |numbers: &[i64]| {
            let values = numbers.iter().map(|number| Value::Int(*number)).collect();
            super::read(&Value::Array(values), questions.iter())
        };
        let (time, answers) = read(&[5, 1, 7, 0, 8, 9]).expect("an answer");
        assert_eq!(time, 5);
        assert_eq!(answers[0], Answer { taken: true, spent: [7].into_iter().collect() });
        assert_eq!(answers[1], Answer { taken: false, spent: [8, 9].into_iter().collect() });
        for wrong in [
            &[][..],
            &[5, 1],
            &[5, 1, 7, 0, 8],
            &[5, 1, 7, 0, 8, 9, 1],
            &[5, 2, 7, 0, 8, 9],
            &[5, 1, -7, 0, 8, 9],
        ] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
        assert_eq!(super::read(&Value::Okay, questions.iter()), None);
        assert_eq!(super::read(&Value::Array(vec![Value::Nil]), questions.iter()), None);
    }
}
