//! Flags for the values of `config.json` that embedded models read: `--num_layers`,
//! `--rope_theta` and whatever else a model file's clauses `from("…")` name.

use clap::builder::ValueParser;
use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};
use mdl_check::overrides::{JsonPath, json_paths};
use mdl_driver::embedded::MODELS;
use mdl_driver::front::Front;
use mdl_syntax::ast::FieldType;
use serde_json::{Value, json};

/// The values of `config.json` that flags give, by path.
#[derive(Clone, Debug, Default)]
pub struct ConfigValues {
    pub given: Vec<(String, Value)>,
}

/// Names that common training scripts use for keys of `config.json`, with what they mean. Where the
/// two differ, the keys' own names work too.
const COMMON: [(&str, &str, &str); 7] = [
    ("hidden_size", "hidden_width", "Numbers that stand for a token between layers"),
    ("num_hidden_layers", "num_layers", "Layers"),
    ("num_attention_heads", "num_heads", "Heads of the queries"),
    ("num_key_value_heads", "num_key_value_heads", "Heads of keys and values"),
    ("intermediate_size", "intermediate_size", "Width within the feed-forward block"),
    ("vocab_size", "vocab_size", "Token ids that there are"),
    ("num_local_experts", "num_experts", "Experts of a layer"),
];

thread_local! {
    /// Names of a tree stay in their thread, and flags are there as long as the program is.
    static KNOWN: &'static [JsonPath] = read_by_models().leak();
}

/// What the embedded models read, once each.
fn known() -> &'static [JsonPath] {
    KNOWN.with(|known| *known)
}

fn read_by_models() -> Vec<JsonPath> {
    let mut known: Vec<JsonPath> = Vec::new();
    for (name, text) in MODELS {
        let mut front = Front::load(name, text, &|_| None);
        let Some(model) = front.model() else { continue };
        for path in json_paths(&front.program, model.config) {
            if !known.iter().any(|k| k.path == path.path) {
                known.push(path);
            }
        }
    }
    known
}

/// The flag for a path of `config.json`.
pub fn flag_name(path: &str) -> &str {
    COMMON.iter().find(|(key, _, _)| *key == path).map_or(path, |(_, flag, _)| flag)
}

impl FromArgMatches for ConfigValues {
    fn from_arg_matches(matches: &ArgMatches) -> Result<ConfigValues, Error> {
        let value = |known: &JsonPath| {
            let value = matches.get_one::<Value>(flag_name(&known.path))?;
            Some((known.path.clone(), value.clone()))
        };
        Ok(ConfigValues { given: known().iter().filter_map(value).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = ConfigValues::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for ConfigValues {
    fn augment_args(command: Command) -> Command {
        command.args(known().iter().map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        ConfigValues::augment_args(command)
    }
}

fn arg(known: &'static JsonPath) -> Arg {
    let path = known.path.as_str();
    let flag = flag_name(path);
    let guide = COMMON.iter().find(|(key, _, _)| *key == path);
    let help = match guide {
        Some((_, _, what)) => format!("{what} [default: the preset's]"),
        None => format!("`{path}` of config.json, the model's `{}`", known.field),
    };
    let (value_name, parser) = match known.kind {
        FieldType::Size => ("N", ValueParser::from(size)),
        FieldType::Real => ("X", ValueParser::from(real)),
        FieldType::Bool => ("0|1", ValueParser::from(truth)),
        FieldType::Text | FieldType::Config(_) => ("TEXT", ValueParser::from(text)),
    };
    let arg = Arg::new(flag).long(flag).help(help).value_name(value_name).value_parser(parser);
    // One spelling of a value is enough for the short help.
    let arg = arg.hide_short_help(path.contains('.'));
    if flag == path { arg } else { arg.visible_alias(path) }
}

fn size(given: &str) -> Result<Value, String> {
    match given.parse::<u64>() {
        Ok(n) if (1..1 << 31).contains(&n) => Ok(json!(n)),
        _ => Err("a size is a whole number from 1 to 2147483647".to_string()),
    }
}

fn real(given: &str) -> Result<Value, String> {
    match given.parse::<f64>() {
        Ok(x) if x.is_finite() => Ok(json!(x)),
        _ => Err("a number such as 500000 or 1e-5 is needed".to_string()),
    }
}

fn truth(given: &str) -> Result<Value, String> {
    match given {
        "1" | "true" => Ok(json!(true)),
        "0" | "false" => Ok(json!(false)),
        _ => Err("0 or 1 is needed".to_string()),
    }
}

fn text(given: &str) -> Result<Value, String> {
    Ok(json!(given))
}
