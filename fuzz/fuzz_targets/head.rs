//! A head that is accepted says the same after it was written anew; a body is the same however it is cut.

#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use sluicegate::http::fields::Fields;
use sluicegate::http::h1::encode::{self, RequestExtras};
use sluicegate::http::h1::framing::{Decoder, Length, Piece};
use sluicegate::http::h1::parse::{self, HeadLimits, HeadScan, Leniency, LineEnds};
use sluicegate::http::text::Text;

const LIMITS: HeadLimits = HeadLimits { bytes: 64 * 1024, fields: 200 };

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    Request(&'a [u8]),
    Response(&'a [u8]),
    Body { length: Option<u8>, cuts: Vec<u8>, wire: &'a [u8] },
}

fuzz_target!(|input: Input<'_>| match input {
    Input::Request(bytes) => request(bytes),
    Input::Response(bytes) => response(bytes),
    Input::Body { length, cuts, wire } => {
        let length = length.map_or(Length::Chunked, |length| Length::exact(length.into()));
        let whole = decode(length, wire, &[]);
        assert_eq!(decode(length, wire, &cuts), whole);
        if cuts.is_empty() {
            assert_eq!(decode(length, wire, &[0]), whole, "byte by byte");
        }
    }
});

/// The head that `bytes` begin with; the same wherever the bytes are cut.
fn scan(bytes: &[u8], leniency: Leniency) -> Option<(Bytes, LineEnds)> {
    let mut ends = LineEnds::default();
    let found = HeadScan::default().find_end(bytes, &LIMITS, leniency, &mut ends).ok().flatten();
    let mut scan = HeadScan::default();
    let mut again = None;
    for len in 0..=bytes.len() {
        match scan.find_end(&bytes[..len], &LIMITS, leniency, &mut LineEnds::default()) {
            Ok(None) => {}
            Ok(end) => {
                again = end;
                break;
            }
            Err(_) => break,
        }
    }
    assert_eq!(found, again);
    found.map(|end| (Bytes::copy_from_slice(&bytes[..end]), ends))
}

fn request(bytes: &[u8]) {
    let Some((head, ends)) = scan(bytes, Leniency::None) else { return };
    let parsed = parse::request(head.clone(), &ends, &LIMITS, None);
    let searched = parse::request(head, &LineEnds::default(), &LIMITS, None);
    assert_eq!(format!("{parsed:?}"), format!("{searched:?}"), "the known ends of lines are those found");
    let Ok(mut parsed) = parsed else { return };
    if parsed.head.authority.as_bytes().is_empty() {
        // As it is before it goes to a pod.
        parsed.head.authority = Text::from_static("pod.test");
    }
    let extras = RequestExtras {
        expect_continue: parsed.expects_continue,
        upgrade: parsed.upgrade.as_ref().map(http::HeaderValue::as_bytes),
    };
    let mut wire = BytesMut::new();
    encode::request_head(&mut wire, &parsed.head, parsed.length, extras);
    let (head, ends) = scan(&wire, Leniency::None).expect("what we write ends");
    assert_eq!(head.len(), wire.len(), "what we write ends once");
    let again = parse::request(head, &ends, &HeadLimits { bytes: 1 << 20, fields: 300 }, None)
        .expect("what we write is good");
    assert_eq!(again.head.method, parsed.head.method);
    assert_eq!(again.head.path, parsed.head.path);
    assert_eq!(again.head.query, parsed.head.query);
    assert_eq!(again.head.authority, parsed.head.authority);
    assert_eq!(again.head.headers, parsed.head.headers);
    assert_eq!(again.length, parsed.length);
    assert_eq!(again.upgrade, parsed.upgrade);
    assert_eq!(again.expects_continue, parsed.expects_continue);
    assert!(again.keep_alive);
}

fn response(bytes: &[u8]) {
    let Some((head, ends)) = scan(bytes, Leniency::BareLineFeed) else { return };
    let parsed = parse::response(head.clone(), &ends, &LIMITS);
    let searched = parse::response(head, &LineEnds::default(), &LIMITS);
    assert_eq!(format!("{parsed:?}"), format!("{searched:?}"), "the known ends of lines are those found");
    let Ok(parsed) = parsed else { return };
    let mut wire = BytesMut::new();
    encode::response_start(&mut wire, http::Version::HTTP_11, parsed.head.status, &parsed.head.headers);
    wire.extend_from_slice(b"\r\n");
    let (head, ends) = scan(&wire, Leniency::None).expect("what we write ends");
    assert_eq!(head.len(), wire.len(), "what we write ends once");
    let again = parse::response(head, &ends, &HeadLimits { bytes: 1 << 20, fields: 300 })
        .expect("what we write is good");
    assert_eq!(again.head.status, parsed.head.status);
    // Announced only where chunks follow, which are not written here.
    let mut expected = parsed.head.headers;
    expected.remove(http::header::TRAILER);
    assert_eq!(again.head.headers, expected);
    assert_eq!(again.length, Length::UntilClose, "no framing of the pod's is passed on");
}

/// Content, trailer fields, whether it was refused, whether it is whole, and what was left.
type Decoded = (Vec<u8>, Option<Fields>, bool, bool, Vec<u8>);

/// Feeds a body in pieces of `cuts` bytes and one, over and over; whole when there are no cuts.
fn decode(length: Length, wire: &[u8], cuts: &[u8]) -> Decoded {
    let mut decoder = Decoder::new(length);
    let (mut content, mut trailers, mut refused) = (Vec::new(), None, false);
    let (mut buf, mut rest) = (BytesMut::new(), wire);
    let mut cuts = cuts.iter().map(|cut| usize::from(*cut) + 1).collect::<Vec<_>>().into_iter().cycle();
    'feed: while !rest.is_empty() {
        let (now, later) = rest.split_at(cuts.next().unwrap_or(rest.len()).min(rest.len()));
        rest = later;
        buf.extend_from_slice(now);
        loop {
            match decoder.decode(&mut buf) {
                Ok(Some(Piece::Data(data))) => {
                    assert!(!data.is_empty());
                    content.extend_from_slice(&data);
                }
                Ok(Some(Piece::Trailers(fields))) => trailers = Some(fields),
                Ok(None) => break,
                Err(_) => {
                    refused = true;
                    break 'feed;
                }
            }
        }
    }
    if refused {
        return (content, None, true, false, Vec::new());
    }
    if !decoder.is_done() {
        assert!(decoder.end_of_input().is_err(), "an end in the middle is an error");
        return (content, trailers, false, false, Vec::new());
    }
    buf.extend_from_slice(rest);
    (content, trailers, false, true, buf.to_vec())
}
