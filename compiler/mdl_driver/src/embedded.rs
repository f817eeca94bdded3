//! The standard library and the models that are part of the binary, so that `mdlc` works from any
//! directory.

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// Text of an embedded model by name.
pub fn model(name: &str) -> Option<&'static str> {
    MODELS.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

/// Text of a module by its path: `std.norm`, or `llama` for an embedded model.
pub fn module(path: &[String]) -> Option<(String, String)> {
    let (kind, table, name) = match path {
        [std, name] if std == "std" => ("stdlib", STDLIB, name),
        [name] => ("models", MODELS, name),
        _ => return None,
    };
    let (_, text) = table.iter().find(|(n, _)| n == name)?;
    Some((format!("{kind}/{name}.mdl"), text.to_string()))
}
