//! What an answer's `Retry-After` asks for (RFC 9110 §10.2.3).

use std::time::{Duration, SystemTime};

use http::header::{DATE, RETRY_AFTER};

use super::fields::Fields;

/// How long from now; `None` where the field is absent or cannot be read.
///
/// A date is compared with the answer's own `Date`, so that clocks that differ do no harm; one that has passed is no
/// time at all. Seconds beyond every number are the longest time that there is.
pub fn retry_after(headers: &Fields, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    Some(until.duration_since(date.unwrap_or(now)).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn asked(value: &'static str, date: Option<&'static str>) -> Option<Duration> {
        let mut headers = Fields::from_iter([(RETRY_AFTER, HeaderValue::from_static(value))]);
        if let Some(date) = date {
            headers.insert(DATE, HeaderValue::from_static(date));
        }
        // One minute before the dates below.
        retry_after(&headers, SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 60))
    }

    #[test]
    fn seconds_and_dates_are_read_and_nothing_else() {
        let secs = |secs| Some(Duration::from_secs(secs));
        assert_eq!(asked("2", None), secs(2));
        assert_eq!(asked("0", None), secs(0));
        // It counted as unreadable, and so as a second.
        assert_eq!(asked("99999999999999999999", None), secs(u64::MAX));
        for unreadable in ["", "soon", "-5", "+5", "1.5"] {
            assert_eq!(asked(unreadable, None), None, "{unreadable:?}");
        }
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:37 GMT", None), secs(60));
        assert_eq!(asked("Sun, 06 Nov 1994 08:47:37 GMT", None), secs(0));
    }

    #[test]
    fn a_date_is_meant_by_the_clock_of_whoever_wrote_it() {
        // A clock that is a minute behind ours made every date one of the past.
        let date = Some("Sun, 06 Nov 1994 08:47:37 GMT");
        assert_eq!(asked("Sun, 06 Nov 1994 08:47:47 GMT", date), Some(Duration::from_secs(10)));
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:37 GMT", Some("x")), Some(Duration::from_secs(60)));
    }
}
