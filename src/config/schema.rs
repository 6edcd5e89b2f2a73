//! The JSON Schema of the whole document, for editors.

use schemars::transform::{RecursiveTransform, Transform};
use schemars::{Schema, schema_for};

use super::document::DocumentConfig;

/// The schema, as a JSON value.
pub fn schema() -> Schema {
    let mut schema = schema_for!(DocumentConfig);
    // A key that is not known is an error, so editors may say so.
    RecursiveTransform(close).transform(&mut schema);
    schema
}

/// The schema as JSON text with indentation.
pub fn json() -> String {
    format!("{:#}\n", schema().as_value())
}

fn close(schema: &mut Schema) {
    if let Some(object) = schema.as_object_mut()
        && object.contains_key("properties")
        && !object.contains_key("additionalProperties")
    {
        object.insert("additionalProperties".to_owned(), false.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_has_defaults_descriptions_and_no_room_for_other_keys() {
        let schema: serde_json::Value = serde_json::from_str(&json()).expect("is JSON");
        let transport = &schema["$defs"]["ForwardingTimeouts"];
        assert_eq!(transport["properties"]["dialTimeout"]["default"], "5s");
        assert_eq!(transport["additionalProperties"], false);
        assert!(
            transport["properties"]["dialTimeout"]["description"]
                .as_str()
                .is_some_and(|text| text.contains("5s"))
        );
        assert_eq!(schema["properties"]["entryPoints"]["type"], "object");
        assert_eq!(schema["additionalProperties"], false);
    }
}
