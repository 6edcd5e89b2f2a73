//! Any path is refused or comes out clean, and comes out the same when it goes in again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::http::path::{PathOptions, prepare};
use sluicegate::http::text::Text;

fuzz_target!(|path: &str| {
    for sanitize in [true, false] {
        let options = PathOptions { sanitize, ..PathOptions::default() };
        let Ok(once) = prepare(&Text::copy_from(path), &options) else { continue };
        let upstream = once.upstream.as_str();
        assert!(upstream.is_ascii());
        assert_eq!(prepare(&once.upstream, &options).expect("what was prepared is good"), once);
        assert_eq!(upstream.split('/').count(), once.routing().as_str().split('/').count());
        if sanitize {
            assert!(!upstream.split('/').any(|segment| matches!(segment, "." | "..")), "{upstream}");
            assert!(!upstream.contains("//"), "{upstream}");
        }
    }
});
