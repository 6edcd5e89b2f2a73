//! Any text is a rule or an error inside of it; a rule's canonical text is the same rule.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sluicegate::matcher::Rule;

fuzz_target!(|text: &str| match Rule::parse(text) {
    Ok(rule) => {
        let canonical = rule.to_string();
        let again = Rule::parse(&canonical).expect("canonical text is a rule");
        assert_eq!(again, rule, "{canonical}");
        assert_eq!(again.to_string(), canonical);
    }
    Err(error) => assert!(text.get(error.at.clone()).is_some(), "{error:?}"),
});
